"""`kamerton chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kamerton.methods.method import Adapted
    from kamerton.tasks.example import Conversation, Message

HELP = """/reset          forget the conversation
/system TEXT    set the system prompt
/set NAME=VALUE change sampling (temperature, top_k, top_p, min_p, max_tokens, seed)
/prompt         show what the model sees
/help           this list
/quit           leave (or Ctrl-D)"""


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
        from dataclasses import replace

        from rich.console import Console

        from kamerton.api import load
        from kamerton.errors import KamertonError
        from kamerton.inference import Sampling
        from kamerton.tasks.example import Message

        console = Console()
        with console.status("loading"):
            adapted = load(target)
        console.print(f"{adapted.base.info}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"method {adapted.method}; /help lists the commands", highlight=False)
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
        history: list[Message] = []
        while True:
            try:
                text = input("› ").strip()
            except EOFError:
                console.print()
                return
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
                name, _, value = rest.partition("=")
                try:
                    changed: dict[str, Any] = {name.strip(): _number(value)}
                    sampling = replace(sampling, **changed)
                except (TypeError, ValueError, KamertonError) as error:
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


def _number(text: str) -> int | float | None:
    text = text.strip()
    if text in ("none", ""):
        return None
    return float(text) if "." in text or "e" in text else int(text)


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
