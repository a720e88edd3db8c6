"""The commands of a chat, each a function of the session and of what stands behind its name."""

from __future__ import annotations

import json

from kamerton.chat.history import History, load, save
from kamerton.chat.session import Command, Session
from kamerton.chat.settings import SETTINGS, changed, shown
from kamerton.chat.telling import counts, short
from kamerton.errors import KamertonError
from kamerton.files import expanded
from kamerton.recipe_errors import closest
from kamerton.tasks.newest import turns_of


def help_(session: Session, _: str) -> None:
    """this list"""
    width = max(len(usage) for usage, _, _ in COMMANDS.values())
    lines = [f"{usage:<{width}}  {what}" for usage, what, _ in COMMANDS.values()]
    session.screen.show("\n".join([*lines, "", *KEYS]))


def set_(session: Session, text: str) -> None:
    if text:
        session.sampling = changed(session.sampling, text)
    session.screen.note(shown(session.sampling))


def system(session: Session, text: str) -> None:
    before, session.history.system = session.history.system, text or None
    if text:
        session.screen.note("(set)" if before is None else f"(set; it was: {before})")
    else:
        session.screen.note(f"(no system prompt now; it was: {before})" if before else "(there is no system prompt)")


def reset(session: Session, _: str) -> None:
    had = bool(session.history.turns)
    session.replace(History(session.history.system))
    kept = "; the system prompt stays" if session.history.system else ""
    session.screen.note(f"(a new conversation{kept}{'; /undo brings the last one back' if had else ''})")


def undo(session: Session, _: str) -> None:
    if session.before is not None:
        session.history, session.before = session.before, None
        session.screen.note(f"(back again: {_size(session.history)})")
        return
    question = session.history.take_back()
    if question is None:
        raise KamertonError("there is nothing to take back", mend="ask something first")
    session.screen.note(f"(taken back: {short(question)})")


def retry(session: Session, _: str) -> None:
    if session.sampling.temperature == 0:
        session.screen.note("(temperature 0 gives the same answer to the same question)")
    session.retry()


def save_(session: Session, text: str) -> None:
    if not text:
        raise KamertonError("no file is named", mend="write /save FILE")
    path = expanded(text)
    number, again = save(session.history, path)
    there = ", in place of what was saved of it before" if again else ""
    session.screen.note(f"({_size(session.history)} saved: {path}, line {number}{there})")


def load_(session: Session, text: str) -> None:
    name, _, last = text.rpartition(" ")
    number = int(last) if name and last.isdecimal() else None
    name = name if number is not None else text
    if not name:
        raise KamertonError("no file is named", mend="write /load FILE, or /load FILE NUMBER")
    path = expanded(name.strip())
    history, at, many = load(path, number)
    session.replace(history)
    of = f"conversation {at} of {many}" if many > 1 else "conversation"
    asks = "; it ends with a question, /retry answers it" if history.turns and history.turns[-1].role == "user" else ""
    session.screen.note(f"({of} loaded, {_size(history)}{asks})")


def prompt(session: Session, text: str) -> None:
    history = session.history
    if text:
        asked = history.conversation(text)
    else:
        last = history.last_question()
        if last is None:
            raise KamertonError("nothing was asked yet", mend="/prompt TEXT shows what the model would see for a text")
        asked = History(history.system, history.turns[: last + 1]).conversation()
    session.screen.show(session.models.prompt(asked, session.sampling))


def model(session: Session, name: str) -> None:
    models = session.models
    if name and name not in models.names:
        raise KamertonError(f"no model {name!r}", mend=closest(name, models.names))
    if name:
        models.name = name
        session.screen.note(f"({name} answers now)")
    else:
        session.screen.show("\n".join(f"{'*' if one == models.name else ' '} {one}" for one in models.names))


def tokens(session: Session, _: str) -> None:
    if session.last is None:
        raise KamertonError("nothing was answered yet", mend="ask something first")
    lines = [f"last answer: {counts(session.last)}"]
    context, read = session.models.context, session.last.prompt_tokens
    if context and read is not None:
        used = read + (session.last.answer_tokens or 0)
        lines.append(f"context: {used:,} of {context:,} tokens")
    written = f", {session.written:,} tokens written" if session.written else ""
    lines.append(f"this chat: {session.answered} answer{'s' if session.answered != 1 else ''}{written}")
    session.screen.show("\n".join(lines))


def details(session: Session, _: str) -> None:
    if session.last is None or not session.last.details:
        raise KamertonError("the last answer tells nothing of how it came about", mend="methods such as rag do")
    session.screen.show(json.dumps(session.last.details, ensure_ascii=False, indent=1))


def quit_(session: Session, _: str) -> None:
    session.open = False


COMMANDS: dict[str, tuple[str, str, Command]] = {
    "help": ("/help", "this list", help_),
    "set": ("/set NAME VALUE", f"change the sampling: {', '.join(SETTINGS)}", set_),
    "system": ("/system TEXT", "set the system prompt; without TEXT remove it", system),
    "reset": ("/reset", "a new conversation", reset),
    "undo": ("/undo", "take the last question and its answer back", undo),
    "retry": ("/retry", "ask the last question again", retry),
    "save": ("/save FILE", "put the conversation into a file, as a line that a task can be made of", save_),
    "load": ("/load FILE [NUMBER]", "go on with a conversation from a file; default: its last one", load_),
    "prompt": ("/prompt [TEXT]", "show what the model sees for the last question, or for TEXT", prompt),
    "model": ("/model [NAME]", "list the models, or choose the one that answers", model),
    "tokens": ("/tokens", "count and speed of the last answer", tokens),
    "details": ("/details", "all that a method tells of the last answer, as JSON", details),
    "quit": ("/quit", "leave (or Ctrl-D)", quit_),
}
"""By name: how it is written, what it does, and the function."""

KEYS = (
    "A line that ends in \\ goes on; lines between two lines of \"\"\" are one message.",
    "Ctrl-C stops an answer and keeps what came of it.",
)  # fmt: skip


def functions() -> dict[str, Command]:
    """The commands by name, `/exit` for `/quit` too."""
    return {name: function for name, (_, _, function) in COMMANDS.items()} | {"exit": quit_}


def complete(session: Session, line: str) -> list[str]:
    """What a line's last word may become: a command, a setting, a model, a file."""
    command, space, rest = line.partition(" ")
    if not space:
        return [f"/{name} " for name in COMMANDS if f"/{name}".startswith(line)] if line.startswith("/") else []
    if command == "/set":
        return [f"{name} " for name in SETTINGS if name.startswith(rest)]
    if command == "/model":
        return [name for name in session.models.names if name.startswith(rest)]
    if command in ("/save", "/load"):
        return _files(rest)
    return []


def _files(beginning: str) -> list[str]:
    try:
        path = expanded(beginning)
    except KamertonError:
        return []
    folder = path if beginning.endswith("/") else path.parent
    begun = "" if beginning.endswith("/") else path.name
    shown_folder = beginning[: len(beginning) - len(begun)]
    try:
        found = sorted(p for p in folder.iterdir() if p.name.startswith(begun))
    except OSError:
        return []
    return [f"{shown_folder}{p.name}{'/' if p.is_dir() else ''}" for p in found]


def _size(history: History) -> str:
    turns = turns_of(tuple(history.turns))
    return f"{turns} turn{'s' if turns != 1 else ''}"
