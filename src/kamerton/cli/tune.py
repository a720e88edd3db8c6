"""`kamerton tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import read_options, say_saved, terminal, tried


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton tune examples/dates.yaml lora --output runs/dates-lora\n\n"
        "kamerton tune examples/dates.yaml lora --output runs/r4 --option rank=4 --option learning_rate=0.001"
    )
    def tune(
        recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
        method: Annotated[str | None, typer.Argument(help="A method or label; default: the recipe's only one.")] = None,
        output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<recipe>-<method>.")] = None,
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the recipe's first.")] = None,
        option: Annotated[list[str] | None, typer.Option(help="An option of the method: rank=4.")] = None,
        tracker: Annotated[list[str] | None, typer.Option(help="A tracker: tensorboard, wandb, …")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
    ) -> None:
        """Adapt a base to a task by one method and save the result.

        Stopped at any moment, the same command goes on from the last checkpoint.
        """
        from kamerton.recipe import load_recipe

        loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here

        options = read_options(option or [])

        from kamerton.api import tune as run
        from kamerton.cli.display import OneBar

        folder = output or Path("runs") / f"{loaded.name}-{method or loaded.methods[0].label}"
        with OneBar() as bar:
            adapted = run(loaded, method, output=folder, options=options, seed=seed, report=bar, trackers=tracker or ())
        console, record = terminal(), adapted.record
        for note in record.notes:
            console.print(note, highlight=False, markup=False)
        for line in tried(record.search):
            console.print(line, highlight=False, markup=False)
        held_out = [row["validation_loss"] for row in record.curve if "validation_loss" in row]
        if held_out:
            console.print(
                f"validation loss {min(held_out):.4f}, {record.tokens:,} tokens in {record.seconds:.0f} s, "
                f"{record.trainable_parameters:,} trained parameters", highlight=False,
            )  # fmt: skip
        say_saved(folder, recipe)
