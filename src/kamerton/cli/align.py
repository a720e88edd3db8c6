"""`kamerton align`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ALIGN = ("dpo", "rejection-sampling", "ppo", "grpo", "adversarial")
"""Objectives that learn from preferences or rewards."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton align examples/dpo.yaml dpo --output runs/dpo\n\n"
        "kamerton align examples/dpo.yaml ipo --option 'dpo={loss: ipo, beta: 0.3}'\n\n"
        "kamerton align examples/dates.yaml gan-prompt --output runs/dates-gan"
    )
    def align(
        recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
        method: Annotated[
            str | None, typer.Argument(help="A method or label; default: the recipe's only one that aligns.")
        ] = None,
        output: Annotated[Path | None, typer.Option(help="Folder; default: runs/<recipe>-<method>.")] = None,
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the recipe's first.")] = None,
        option: Annotated[list[str] | None, typer.Option(help="An option of the method: 'dpo={beta: 0.3}'.")] = None,
        tracker: Annotated[list[str] | None, typer.Option(help="A tracker: tensorboard, wandb, …")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
    ) -> None:
        """Train a method on preferences or rewards, behind its supervised start, and save the result.

        The method's objective is dpo, rejection-sampling, ppo, grpo or adversarial. Stopped at any moment, the same
        command goes on from the last checkpoint.
        """
        from kamerton.cli.options import read_options, say, say_saved
        from kamerton.recipe import load_recipe

        loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here
        options = read_options(option or [])

        from kamerton.api import pick_method
        from kamerton.api import tune as run
        from kamerton.cli.display import OneBar
        from kamerton.errors import RecipeError
        from kamerton.methods import resolve_one
        from kamerton.objectives import OBJECTIVES

        def objective(label: str) -> str:
            spec = pick_method(loaded, label)
            return str(getattr(resolve_one(loaded, spec, options if method else None)[1], "objective", "none"))

        known = ", ".join(name for name in ALIGN if name in OBJECTIVES)
        if method is None:
            fitting = [spec.label for spec in loaded.methods if objective(spec.label) in ALIGN]
            if len(fitting) != 1:
                what = f"{len(fitting)} methods of the recipe align" if fitting else "no method of the recipe aligns"
                mend = f"name one: {', '.join(fitting)}" if fitting else f"give one an objective that aligns: {known}"
                raise RecipeError(what, where=recipe, mend=mend)
            method = fitting[0]
        kind = objective(method)
        if kind not in ALIGN:
            mend = f"use an objective that does: {known}; or kamerton tune"
            raise RecipeError(f"{method} has objective {kind}, which learns from no preference or reward", where=recipe,
                              mend=mend)  # fmt: skip

        folder = output or Path("runs") / f"{loaded.name}-{method}"
        with OneBar() as bar:
            adapted = run(loaded, method, output=folder, options=options, seed=seed, report=bar, trackers=tracker or ())
        record = adapted.record
        for note in record.notes:
            say(note)
        last = record.curve[-1] if record.curve else {}
        told = [f"{name} {last[name]:.3f}" for name in SHOWN if name in last]
        say(
            f"{kind}: {', '.join(told)}; {record.tokens:,} tokens in {record.seconds:.0f} s, "
            f"{record.trainable_parameters:,} trained parameters"
        )
        say_saved(folder, recipe)


SHOWN = ("loss", "accuracy", "margin", "reward", "kl", "entropy", "auc")
"""Figures of the last step that are printed, where the objective has them."""
