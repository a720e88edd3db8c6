"""`kamerton chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kamerton.inference import Sampling
    from kamerton.methods.method import Adapted
    from kamerton.tasks.example import Conversation, Message

HELP = """/reset          forget the conversation
/system TEXT    set the system prompt
/set NAME=VALUE change sampling (temperature, top_k, top_p, min_p, max_tokens, seed)
/prompt         show what the model sees
/help           this list
/quit           leave (or Ctrl-D)"""

SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float, "max_tokens": int, "seed": int,
}  # fmt: skip
"""What `/set` changes."""

FILTERS = ("top_k", "top_p", "min_p")
"""Settings that `none` switches off."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\nkamerton chat demo\n\nkamerton chat runs/dates-lora --system 'Write the date in ISO 8601.'"
    )
    def chat(
        target: Annotated[str, typer.Argument(help="A tuned folder, a comparison (its winner), or a base.")] = "demo",
        system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
        temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
        top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 0.95,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
        seed: Annotated[int, typer.Option(min=0)] = 0,
    ) -> None:
        """Talk to a model in the terminal."""
        import contextlib

        from rich.console import Console

        from kamerton.api import load
        from kamerton.errors import KamertonError
        from kamerton.inference import Sampling
        from kamerton.tasks.example import Message

        with contextlib.suppress(ImportError):  # arrow keys and history; not every Python has it
            import readline  # noqa: F401

        console = Console()
        with console.status("loading"):
            adapted = load(target)
        console.print(f"{adapted.base.info}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"method {adapted.method}; /help lists the commands", highlight=False)
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
        history: list[Message] = []
        interrupted = False
        while True:
            try:
                text = input("› ").strip()
            except EOFError:
                console.print()
                return
            except KeyboardInterrupt:
                console.print()
                if interrupted:
                    return
                interrupted = True
                console.print("Ctrl-C again, Ctrl-D or /quit leaves the chat", highlight=False)
                continue
            interrupted = False
            if not text:
                continue
            command, _, rest = text.partition(" ")
            if command in ("/quit", "/exit"):
                return
            if command == "/help":
                console.print(HELP, highlight=False, markup=False)
            elif command == "/reset":
                history.clear()
            elif command == "/system":
                system = rest or None
            elif command == "/set":
                try:
                    sampling = _set(sampling, rest)
                except KamertonError as error:
                    console.print(f"error: {error}", highlight=False, markup=False)
            elif command == "/prompt":
                asked = _conversation(system, history)
                try:
                    seen = adapted.renderer.text(adapted.prepare(asked)) if asked else "nothing yet"
                except KamertonError as error:
                    seen = f"error: {error}"
                console.print(seen, highlight=False, markup=False)
            elif command.startswith("/"):
                console.print(f"no command {command}; /help lists them", highlight=False, markup=False)
            else:
                history.append(Message("user", text))
                dropped = _drop_oldest(adapted, system, history, sampling.max_tokens)
                if dropped:
                    console.print(f"({dropped} oldest turns no longer fit and were dropped)", highlight=False)
                said = ""
                try:
                    for piece in adapted.stream(_conversation(system, history), sampling):
                        said += piece
                        console.print(piece, end="", highlight=False, markup=False, soft_wrap=True)
                except KeyboardInterrupt:
                    console.print(" …", end="")
                except KamertonError as error:  # too long for the model or not for its template: the talk goes on
                    console.print(f"error: {error}", highlight=False, markup=False)
                    history.pop()
                    continue
                console.print()
                history.append(Message("assistant", said))


def _set(sampling: Sampling, text: str) -> Sampling:
    """The sampling with one setting changed, `NAME=VALUE`.

    Raises:
        KamertonError: no such setting, or a value that it cannot take.
    """
    from dataclasses import replace

    from kamerton.errors import KamertonError
    from kamerton.recipe_errors import nearest

    name, equals, value = (part.strip() for part in text.partition("="))
    known = ", ".join(SETTINGS)
    if name not in SETTINGS:
        near = nearest(name, SETTINGS)
        what = f"no setting {name!r}" if name else "nothing to set"
        raise KamertonError(what, mend=f"did you mean {near}?" if near else f"known are: {known}")
    changed: dict[str, Any] = {name: None}
    try:
        if name not in FILTERS or value != "none":
            changed = {name: SETTINGS[name](value)}
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        off = ", or none" if name in FILTERS else ""
        given = f"not {value!r}" if equals else "and no value is given"
        raise KamertonError(f"{name} is {kind}{off}, {given}", mend=f"write /set {name}=VALUE") from None
    return replace(sampling, **changed)


def _conversation(system: str | None, history: list[Message]) -> Conversation:
    from kamerton.tasks.example import Message

    return ((Message("system", system),) if system else ()) + tuple(history)


def _drop_oldest(adapted: Adapted, system: str | None, history: list[Message], room: int) -> int:
    """Drop the oldest turns (question and answer together) until the prompt leaves room for an answer."""
    limit = adapted.engine.model.prompt_limit(room, 0)
    if limit is None:
        return 0
    dropped = 0
    while len(history) > 2 and adapted.prompt_tokens(_conversation(system, history)) > limit:
        del history[:2]
        dropped += 2
    return dropped
