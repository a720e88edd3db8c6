"""`kamerton plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kamerton.cli.options import dtype_name, say, terminal

if TYPE_CHECKING:
    from kamerton.comparison.planning.device import Device


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        epilog="Examples:\n\n"
        "kamerton plan examples/dates.yaml\n\n"
        "kamerton plan examples/dates.yaml --as llama --size 1b\n\n"
        "kamerton plan examples/methods.yaml --as llama3-70b --peak 989 --bandwidth 3350 --memory 80\n\n"
        "kamerton plan examples/dates.yaml --as llama-7b --answers runs/dates --json > plan.json"
    )
    def plan(
        recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
        as_: Annotated[
            str | None, typer.Option("--as", help="A model or preset of `kamerton base show` in place of the base.")
        ] = None,
        size: Annotated[str | None, typer.Option(help="Parameters of a preset: 10m, 1.3b.")] = None,
        dtype: Annotated[str | None, typer.Option(help="Data type of the base; default: the recipe's.")] = None,
        peak: Annotated[float | None, typer.Option(help="TFLOPS of a device; default: this machine, measured.")] = None,
        efficiency: Annotated[float, typer.Option(help="The share of --peak that large products reach.")] = 0.4,
        bandwidth: Annotated[float | None, typer.Option(help="GB/s of the device's memory.")] = None,
        memory: Annotated[float | None, typer.Option(help="GB of the device's memory.")] = None,
        answer_tokens: Annotated[
            int | None, typer.Option(min=1, help="Tokens of each answer; default: of the longest reference answer.")
        ] = None,
        answers: Annotated[
            Path | None, typer.Option(help="A comparison's folder: answers as long as its methods gave.")
        ] = None,
        data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
        set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: budget.epochs=2.")] = None,
        json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
        markdown_: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    ) -> None:
        """Print what a comparison will take: FLOPs, time, peak memory and devices for each method.

        Nothing is computed with the model itself: every method is run on a narrow stand-in of as many layers.
        """
        device = described(peak, efficiency, bandwidth, memory)
        kind = dtype_name(dtype) if dtype else None
        from kamerton.recipe import load_recipe

        loaded = load_recipe(recipe, data=data, overrides=set_ or [])

        from kamerton.cli.display import OneBar
        from kamerton.comparison.planning.plan import plan as find
        from kamerton.comparison.planning.table import markdown, sentences

        with OneBar() as bar:
            found = find(
                loaded, model=as_, size=size, dtype=kind, device=device, answer_tokens=answer_tokens, answers=answers,
                tell=bar,
            )  # fmt: skip
        if json_:
            import json

            typer.echo(json.dumps(found.to_dict(), indent=1))
        elif markdown_:
            typer.echo(markdown(found), nl=False)
        else:
            _print(found)
            for line in sentences(found):
                say(line)
        if any(c.error for c in found.costs):
            raise typer.Exit(1)


def described(peak: float | None, efficiency: float, bandwidth: float | None, memory: float | None) -> Device | None:
    """The device of the options; None where they leave it to be this machine.

    Raises:
        KamertonError: some are given and not all, or one is no positive number.
    """
    from kamerton.comparison.planning.device import Device
    from kamerton.errors import KamertonError

    given = {"--peak": peak, "--bandwidth": bandwidth, "--memory": memory}
    for name, value in (*given.items(), ("--efficiency", efficiency)):
        if value is not None and not 0 < value < float("inf"):
            raise KamertonError(f"is {value:g}", where=name, mend="give a positive number")
    if efficiency > 1:
        raise KamertonError(f"is {efficiency:g}", where="--efficiency", mend="give a share of the peak, 0.4 for 40%")
    if peak is None and bandwidth is None and memory is None:
        return None
    if peak is None or bandwidth is None or memory is None:
        missing = next(name for name, value in given.items() if value is None)
        raise KamertonError("is missing", where=missing, mend="give --peak, --bandwidth and --memory together")
    return Device("as described", peak * 1e12, efficiency, bandwidth * 1e9, memory * 1e9)


def _print(found: object) -> None:
    from rich.table import Table

    from kamerton.comparison.planning.plan import Plan
    from kamerton.comparison.planning.table import COLUMNS, rows

    assert isinstance(found, Plan)
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for row in rows(found):
        table.add_row(*row)
    terminal().print(table, highlight=False)
