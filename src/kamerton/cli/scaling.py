"""`kamerton scaling`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton scaling examples/pretrain/scaling.yaml\n\n"
        "kamerton scaling examples/pretrain/scaling.yaml --flops 1e14\n\n"
        "kamerton scaling examples/pretrain/scaling.yaml --minutes 30 --set scaling.count=all"
    )
    def scaling(
        recipe: Annotated[
            Path, typer.Argument(help="The recipe of a pretraining with a block scaling (YAML).", show_default=False)
        ],
        flops: Annotated[float | None, typer.Option(help="Suggest a model for so many training FLOPs.")] = None,
        minutes: Annotated[
            float | None, typer.Option(help="Suggest a model for so many minutes of this machine, measured now.")
        ] = None,
        output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<recipe>.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: scaling.seeds=3.")] = None,
    ) -> None:
        """Train a grid of model sizes and token counts, and fit scaling laws: which size is best for a budget.

        Stopped at any moment, the same command goes on. What was trained is not trained again, also where sizes or
        token counts are added.
        """
        from kamerton.errors import RecipeError
        from kamerton.recipe_pretrain import as_pretrain_recipe
        from kamerton.yaml_source import read_yaml

        raw, _ = read_yaml(recipe)
        if isinstance(raw, dict) and "task" in raw:
            mend = "use kamerton eval TARGET RECIPE --scaling for the scaling of answers with samples and thought"
            raise RecipeError("is the recipe of a comparison, not of a pretraining", where=recipe, mend=mend)
        loaded = as_pretrain_recipe(recipe, set_ or [])  # before slow imports: most mistakes are here

        from kamerton.cli.display import OneBar
        from kamerton.cli.options import say
        from kamerton.pretraining.scaling.page import lines, suggestion, warnings
        from kamerton.pretraining.scaling.run import scaling_laws

        with OneBar() as bar:
            made = scaling_laws(loaded, output=output, flops=flops, minutes=minutes, report=bar)
        for line in lines(made.results):
            say(line)
        for line in made.sentences:
            say(f"- {line}")
        for line in warnings(made.results):
            say(f"warning: {line}")
        for note in made.results["notes"]:
            say(f"note: {note}")
        for line in suggestion(made.results):
            say(line)
        say(f"page: {made.report}")
