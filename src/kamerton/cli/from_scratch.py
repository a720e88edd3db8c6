"""`kamerton from-scratch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "from-scratch",
        epilog="Examples:\n\n"
        "kamerton from-scratch examples/from_scratch.yaml --data ~/data\n\n"
        "kamerton from-scratch examples/from_scratch.yaml --data ~/data --until llama\n\n"
        "kamerton from-scratch examples/from_scratch.yaml --data ~/data --set budget.seconds=600 --output runs/longer",
    )
    def from_scratch(
        recipe: Annotated[Path, typer.Argument(help="The recipe of a whole path (YAML).", show_default=False)],
        output: Annotated[Path | None, typer.Option(help="Folder; default: the recipe's, or runs/NAME.")] = None,
        data: Annotated[Path | None, typer.Option(help="The folder that paths of raw files start from.")] = None,
        until: Annotated[str | None, typer.Option(help="The last stage to run, such as tokenizer.")] = None,
        workers: Annotated[
            int | None, typer.Option(min=1, help="Processes for the corpus; default: one a core.")
        ] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.seconds=60.")] = None,
    ) -> None:
        """From raw files to a chat: corpus, tokenizer, n-grams, networks, instruction tuning, and one page.

        Stopped at any moment, the same command goes on. A stage that is finished and whose inputs did not change is
        not run again; a changed block runs its own stage again and those that depend on what it writes.
        """
        from kamerton.from_scratch.recipe import load_from_scratch

        loaded = load_from_scratch(recipe, output=output, data=data, overrides=set_ or [])

        from kamerton.cli.display import OneBar
        from kamerton.cli.options import say
        from kamerton.from_scratch.page import again, described, sentences
        from kamerton.from_scratch.run import from_scratch as run

        with OneBar() as bar:
            made = run(loaded, until=until, workers=workers, report=bar)
        if made.kept:
            say(f"finished before: {', '.join(made.kept)}")
        for stage in made.results["stages"]:
            told = described(stage)
            say(f"{stage['name']:12} {told['figure']:32} {told['made']}")
        for text in sentences(made.results):
            say(text)
        if repeat := again(made.results):
            say(f"to repeat it by tokens: {repeat}")
        say(f"page: {made.report}")
        if (made.chat / "config.json").is_file():
            say(f"next: kamerton chat {made.chat}")
