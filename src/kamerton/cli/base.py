"""`kamerton base show`: architectures by preset and published models, in numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from kamerton.cli.options import say, terminal

app = typer.Typer(no_args_is_help=True, help="Look at architectures before they are built.")


@app.callback()
def _group() -> None:
    """Look at architectures before they are built."""


@app.command(
    epilog="Examples:\n\nkamerton base show\n\nkamerton base show llama --size 10m\n\nkamerton base show llama-7b\n\n"
    "kamerton base show moe --size 100m --vocabulary 8192 --context 512"
)
def show(
    name: Annotated[str | None, typer.Argument(help="A preset or a published model; none: list them all.")] = None,
    size: Annotated[str | None, typer.Option(help="Parameters of a preset: 1m, 10m, 1.3b; default: 10m.")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=2, help="Tokens; default: the preset's.")] = None,
    context: Annotated[int | None, typer.Option(min=2, help="Positions; default: the preset's.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Hidden size, in place of a size.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Layers, in place of a size.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Heads of keys and values.")] = None,
) -> None:
    """Print shapes, parameters, FLOPs a token and memory to train, without building anything.

    Without a name: all presets, and published models with their parameters beside the published count.
    """
    from rich.table import Table

    from kamerton.base.show import account, human, lines

    console = terminal()
    if name is None:
        from kamerton.base.presets import PRESETS
        from kamerton.base.published import PUBLISHED

        table = Table(box=None, pad_edge=False)
        for column in ("preset", "what it is", "paper"):
            table.add_column(column)
        for preset in PRESETS.values():
            table.add_row(preset.name, preset.summary, preset.paper)
        console.print(table)
        console.print()
        table = Table(box=None, pad_edge=False)
        for column in ("model", "preset", "parameters", "published", "difference"):
            table.add_column(column, justify="left" if column in ("model", "preset") else "right")
        for model, about in PUBLISHED.items():
            own = account(model).parameters
            off = f"{own / about.parameters - 1:+.1%}"
            table.add_row(model, about.preset, f"{own:,}", human(about.parameters), off)
        console.print(table)
        for model, about in PUBLISHED.items():
            if about.note:
                say(f"{model}: {about.note}")
        return
    given = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth, "heads": heads,
             "kv_heads": kv_heads}  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for what, value in lines(account(name, size, **given)):
        table.add_row(what, value)
    console.print(table, highlight=False)
