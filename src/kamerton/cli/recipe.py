"""`kamerton recipe check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kamerton.cli.options import say

if TYPE_CHECKING:
    from kamerton.tasks.example import Example

SHOWN = 5
"""Choices of an example that are printed."""

app = typer.Typer(no_args_is_help=True, help="Work with recipes.")


@app.callback()
def _group() -> None:
    """Work with recipes."""


@app.command(
    epilog="Examples:\n\nkamerton recipe check examples/dates.yaml\n\n"
    "kamerton recipe check examples/sst2.yaml --data ~/data/sst2\n\n"
    "kamerton recipe check examples/dates.yaml --set base=models/my-model --set budget.epochs=2"
)
def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Print so many examples.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
) -> None:
    """Read a recipe and its data without running anything, and show what a model would be asked.

    Of the base it looks whether its files are there; it is not loaded.
    """
    from kamerton.recipe import load_recipe

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here

    from kamerton.base.load import check_source
    from kamerton.comparison.run import at_base, base_options, check_task
    from kamerton.methods import resolve
    from kamerton.tasks import load_task
    from kamerton.tasks.example import SPLITS
    from kamerton.tasks.preferences import pairs_of
    from kamerton.training import Budget

    asked = base_options(loaded)
    with at_base(loaded):
        check_source(asked["name"], device=asked["device"], chat_template=asked["chat_template"])
    methods = resolve(loaded)
    task = load_task(loaded.task)
    check_task(task, loaded.task)
    say(f"{recipe}: good")
    say(f"base      {loaded.base.model}")
    say(f"task      {task.name}: {len(task.train)} train, {len(task.validation)} validation, {len(task.test)} test")
    if any(example.graded for example in task.train):
        counts = [(name, sum(len(pairs_of(e)) for e in getattr(task, name))) for name in SPLITS]
        say(f"pairs     {', '.join(f'{count:,} {name}' for name, count in counts)}")
    say(f"metrics   {', '.join(task.metrics)}")
    say(f"methods   {', '.join(label for label, *_ in methods)}")
    say(f"seeds     {', '.join(map(str, loaded.seeds))}")
    say(f"budget    {Budget(**loaded.budget.model_dump())}")
    for note in task.notes:
        say(f"note      {note}")
    for example in task.train[:show]:
        say("")
        for message in example.messages:
            say(f"{message.role:9} {message.content}")
        for answer in example.answers[:1] if not example.graded else ():
            say(f"{'answer':9} {answer}")
        for name, answer in _judged(example):
            say(f"{name:9} {answer}")
        if example.choices:
            more = ", …" if len(example.choices) > SHOWN else ""
            say(f"{'choices':9} {len(example.choices)}: {', '.join(example.choices[:SHOWN])}{more}")


def _judged(example: Example) -> list[tuple[str, str]]:
    """The judged answers, best first: a pair as chosen and rejected, others with their scores."""
    if len(example.graded) == 2 and example.graded[0].score > example.graded[1].score:
        return list(zip(("chosen", "rejected"), (one.answer for one in example.graded), strict=True))
    return [(f"{one.score:g}", one.answer) for one in example.graded]
