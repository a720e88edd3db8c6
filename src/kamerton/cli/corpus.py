"""`kamerton corpus`: make a corpus, list its steps, train and measure a classifier of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kamerton.cli import corpus_classifier
from kamerton.cli.options import AddressOption, CpusOption, ExecutorOption, MemoryOption, resource_fields, terminal


class _Group(TyperGroup):
    """`kamerton corpus RECIPE` is `kamerton corpus build RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Group, no_args_is_help=True, help="Make a clean corpus from raw files: kamerton corpus RECIPE.")
app.add_typer(corpus_classifier.app, name="classifier")


@app.callback()
def _group() -> None:
    """Make a clean corpus from raw files."""


@app.command(
    epilog="Examples:\n\nkamerton corpus examples/corpus/plays.yaml --data ~/data\n\n"
    "kamerton corpus build examples/corpus/plays.yaml --data ~/data\n\n"
    "kamerton corpus examples/corpus/pages.yaml --workers 8 --output runs/pages\n\n"
    "kamerton corpus examples/corpus/pages.yaml --executor ray --address auto --output /shared/pages\n\n"
    "kamerton corpus examples/corpus/plays.yaml --set most_bytes=50000000"
)
def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe (YAML).", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Folder of results; default: the recipe's, or runs/NAME.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that paths of sources start from.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: this machine's cores.")] = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    cpus: CpusOption = None,
    memory: MemoryOption = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: most_bytes=50000000.")] = None,
) -> None:
    """Read files, clean them, remove duplicates, and report what became of every document.

    Stopped at any moment, the same command goes on. Rejected documents are kept aside with the reason.
    """
    from kamerton.cluster import check_executor
    from kamerton.corpora import build_corpus, load_corpus_recipe

    check_executor(executor, address)
    asked = resource_fields(cpus=cpus, memory=memory)
    loaded = load_corpus_recipe(recipe, data=data, overrides=[*(set_ or []), *asked])

    from kamerton.cli.display import OneBar

    with OneBar() as bar:
        corpus = build_corpus(loaded, output, workers=workers, executor=executor, address=address, watch=bar)
    say_report(terminal(), corpus.results)
    terminal().print(f"{corpus.documents}\n{corpus.report}", highlight=False, markup=False, soft_wrap=True)


def say_report(console: Any, results: dict[str, Any]) -> None:
    """Print the table, the notes and the domains."""
    from rich.table import Table

    from kamerton.text.corpus.report import notes, sentence, size, table

    head, *rows = table(results)
    shown = Table(*head, box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(shown.columns):
        column.justify = "right" if 0 < number < 6 else "left"
        column.no_wrap = number < 6
    for row in rows:
        shown.add_row(*row)
    console.print(shown, highlight=False, markup=False)
    for note in notes(results):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if len(results["domains"]) > 1:
        for name, domain in results["domains"].items():
            text = f"{name:20} {domain['out'][0]:>9,} documents {size(domain['out'][1]):>10} {domain['share']:>6.1%}"
            console.print(text, highlight=False, markup=False)
    console.print(sentence(results), highlight=False, markup=False, soft_wrap=True)


@app.command(epilog="Examples:\n\nkamerton corpus steps\n\nkamerton corpus steps gopher-quality")
def steps(
    name: Annotated[str | None, typer.Argument(help="A step; its options are shown.", show_default=False)] = None,
) -> None:
    """List the steps, or one step's options with their defaults."""
    from kamerton.errors import KamertonError
    from kamerton.recipe_errors import closest
    from kamerton.text.corpus.options import STEPS

    if name is None:
        for key, known in STEPS.items():
            typer.echo(f"{key:18} {known.summary}{'  (sees the whole corpus)' if known.whole else ''}")
        return
    if name not in STEPS:
        raise KamertonError(f"no step {name!r}", mend=closest(name, STEPS))
    options = STEPS[name].options
    typer.echo(f"{name}: {' '.join((options.__doc__ or '').split())}")
    for field, about in options.model_fields.items():
        default = "(needed)" if about.is_required() else about.default
        typer.echo(f"  {field:32} {default}")
