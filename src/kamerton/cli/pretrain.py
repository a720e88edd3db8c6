"""`kamerton pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton pretrain examples/pretrain/shakespeare.yaml\n\n"
        "kamerton pretrain examples/pretrain/shakespeare.yaml --set model.preset=lstm --output runs/lstm\n\n"
        "kamerton pretrain examples/pretrain/shakespeare.yaml --set budget.seconds=600 --set model.size=10m"
    )
    def pretrain(
        recipe: Annotated[Path, typer.Argument(help="The recipe of a pretraining (YAML).", show_default=False)],
        output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<recipe>.")] = None,
        tracker: Annotated[list[str] | None, typer.Option(help="A tracker: tensorboard, wandb, …")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
    ) -> None:
        """Train a model from texts: an architecture by preset and size, or a base that goes on learning.

        Stopped at any moment, the same command goes on from the last checkpoint. What is left is a model folder that
        chat, tune, eval and transformers load.
        """
        from kamerton.recipe_pretrain import as_pretrain_recipe

        loaded = as_pretrain_recipe(recipe, set_ or [])  # before slow imports: most mistakes are here

        from kamerton.cli.display import OneBar
        from kamerton.cli.options import say
        from kamerton.pretraining.page import sentences
        from kamerton.pretraining.run import pretrain as run

        folder = output or Path(loaded.output or Path("runs") / loaded.name)
        with OneBar() as bar:
            made = run(loaded, output=folder, report=bar, trackers=tracker or ())
        assert made is not None
        for line in sentences(made.results):
            say(line)
        for note in made.results["notes"]:
            say(f"note: {note}")
        say(f"saved: {folder}")
        say(f"page: {made.report}")
        if made.next_step is not None:
            say(f"next: {made.next_step}")
