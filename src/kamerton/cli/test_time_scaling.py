"""What `kamerton eval --scaling` does: measure, write, and print the table and what it says."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any


def run_scaling(
    target: str, recipe: Path, data: Path | None, split: str, overrides: list[str], given: dict[str, Any]
) -> None:
    """Measure quality against tokens for a target; `given`: the command's options by name, None where not given."""
    from kamerton.api import scaling
    from kamerton.assessment.scaling_page import lines
    from kamerton.assessment.scaling_settings import ScalingSettings, budgets
    from kamerton.cli.display import OneBar
    from kamerton.cli.options import picked, say_measured
    from kamerton.recipe import load_recipe

    chosen = picked(given, "samples", "temperature", "continuations", "seed")
    if given["--budgets"] is not None:
        chosen["budgets"] = budgets(given["--budgets"])
    if given["--reward"]:
        chosen["rewards"] = tuple(given["--reward"])
    settings = ScalingSettings(**chosen)
    folder = given["--output"] or Path("runs") / f"{Path(target).name or 'model'}-scaling"
    loaded = load_recipe(recipe, data=data, overrides=overrides)
    with OneBar() as bar:
        result = scaling(
            target, loaded, output=folder, settings=settings, split=split, report=bar,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        )  # fmt: skip
    say_measured(lines(result.results), result.sentences, result.report)
