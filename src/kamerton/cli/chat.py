"""`kamerton chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kamerton.cli.options import DtypeOption, dtype_name

if TYPE_CHECKING:
    from kamerton.chat.model import ChatModel
    from kamerton.chat.screen import Screen

KEY = "KAMERTON_API_KEY"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\nkamerton chat demo\n\n"
        "kamerton chat runs/dates-lora --system 'Write the date in ISO 8601.'\n\n"
        "kamerton chat demo dates=runs/dates\n\nkamerton chat http://127.0.0.1:8000/v1 --model dates\n\n"
        "echo 'Name a river.' | kamerton chat demo --temperature 0 > answer.txt"
    )
    def chat(
        targets: Annotated[
            list[str] | None,
            typer.Argument(
                help="Bases, tuned folders, comparisons (their winners), NAME=TARGET names one; or the URL of a server "
                "that speaks OpenAI's protocol. Default: demo.", show_default=False,
            ),
        ] = None,
        system: Annotated[str | None, typer.Option(help="System prompt.", show_default=False)] = None,
        temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
        top_p: Annotated[float, typer.Option(min=0.01, max=1)] = 0.95,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
        seed: Annotated[int, typer.Option(min=0)] = 0,
        model: Annotated[
            str | None, typer.Option(help="The model that answers first; default: the first one.", show_default=False)
        ] = None,
        api_key: Annotated[
            str | None, typer.Option(envvar=KEY, help="Key of the server.", show_default=False, show_envvar=True)
        ] = None,
        dtype: DtypeOption = "auto",
    ) -> None:  # fmt: skip
        """Talk to a model in the terminal."""
        from kamerton.chat.commands import complete, functions
        from kamerton.chat.screen import Screen
        from kamerton.chat.session import Session
        from kamerton.sampling import Sampling

        screen = Screen()
        models = _models(targets or ["demo"], model, api_key, dtype, screen)
        for line in models.about:
            screen.note(line)
        if screen.interactive:
            screen.note("/help lists the commands")
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
        session = Session(models, screen, sampling, system, functions())
        screen.edit_lines(lambda line: complete(session, line))
        if session.run() and not screen.interactive:
            raise typer.Exit(2)  # nobody was there to see what went wrong


def _models(targets: list[str], name: str | None, key: str | None, dtype: str, screen: Screen) -> ChatModel:
    from kamerton.chat.wire import is_url
    from kamerton.errors import KamertonError
    from kamerton.recipe_errors import closest

    if any(map(is_url, targets)):
        from kamerton.chat.remote import RemoteModels

        if len(targets) > 1:
            raise KamertonError("a URL stands alone", mend="name one server, or models that are loaded here")
        if dtype != "auto":
            raise KamertonError("the server has its models in its own data type", where="--dtype", mend="leave it out")
        if key is not None and (not key.strip() or not key.isprintable()):
            raise KamertonError("the API key is empty or holds what a header cannot", mend="give another key")
        with screen.waiting("asking the server"):
            return RemoteModels(targets[0], name=name, key=key)
    kind = dtype_name(dtype)
    with screen.waiting("loading") as waiting:
        from kamerton.chat.local import LocalModels

        models = LocalModels(targets, dtype=kind, report=waiting.say)
    if name is not None:
        if name not in models.names:
            raise KamertonError(f"no model {name!r}", where="--model", mend=closest(name, models.names))
        models.name = name
    return models
