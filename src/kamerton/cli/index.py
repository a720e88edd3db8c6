"""`kamerton index`: add, update, remove, list, search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kamerton.cli.options import say

if TYPE_CHECKING:
    from kamerton.retrieval.index import PassageIndex
    from kamerton.retrieval.upkeep import Outcome

app = typer.Typer(no_args_is_help=True, help="Keep an index of documents, and search it.")
Folder = Annotated[Path, typer.Argument(help="The index: a folder.", show_default=False)]


@app.callback()
def _group() -> None:
    """Keep an index of documents, and search it."""


@app.command(
    epilog="Examples:\n\nkamerton index add runs/docs-index docs README.md\n\n"
    "kamerton index add runs/squad-index --recipe examples/squad-open.yaml --title title"
)
def add(
    index: Folder,
    documents: Annotated[list[Path] | None, typer.Argument(help="Files and folders.", show_default=False)] = None,
    encoder: Annotated[str | None, typer.Option(help="minilm (default), a hub id, or a folder.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Longest passage, in tokens; default: 160.")] = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Tokens that neighbours share; default: 32.")] = None,
    language: Annotated[str | None, typer.Option(help="Of stemming and stop words; default: English.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take a column of this recipe's data as documents.")] = None,
    data: Annotated[Path | None, typer.Option(help="A local copy of the recipe's data: a folder or file.")] = None,
    text: Annotated[str, typer.Option(help="The column with the texts.")] = "context",
    title: Annotated[str | None, typer.Option(help="The column with their titles.")] = None,
) -> None:
    """Add documents to an index, which is made if it is not there.

    Text, Markdown, HTML and PDF, each may be packed as .gz. Documents that are there with the same content are left as
    they are, so a command that was stopped can be given again.
    """
    from kamerton.cli.display import OneBar
    from kamerton.errors import RecipeError
    from kamerton.retrieval import upkeep
    from kamerton.retrieval.documents import DocumentError, find, from_rows
    from kamerton.retrieval.index import PassageIndex
    from kamerton.retrieval.passages import Cutting

    if bool(documents) == (recipe is not None):
        mend = "see: kamerton index add --help"
        raise DocumentError("needs either documents, or --recipe and a column", where=index, mend=mend)
    find(documents or [])  # a wrong path is told before anything is made
    if not (index / "index.json").is_file():
        asked = {"size": size, "overlap": overlap}
        cutting = Cutting(**{name: value for name, value in asked.items() if value is not None})
        opened = PassageIndex.create(
            index, encoder=encoder or "minilm", cutting=cutting, language=language or "English"
        )
    else:
        opened = PassageIndex.open(index, encoder)
        for name, value in {"size": size, "overlap": overlap, "language": language}.items():
            has = opened.about["language"] if name == "language" else opened.about["cutting"][name]
            if value is not None and value != has:
                mend = f"leave --{name} out, or build another index"
                raise DocumentError(f"the index was made with {name} {has}, not {value}", where=index, mend=mend)
    with OneBar() as bar:
        if recipe is None:
            outcome = upkeep.add(opened, documents or [], watch=bar)
        else:
            from kamerton.recipe import load_recipe
            from kamerton.tasks import read_rows

            spec = load_recipe(recipe, data=data).task
            if spec.data is None:
                raise RecipeError("an embedded task has no documents", where=recipe, mend="name a recipe with data")
            parts, notes = read_rows(spec)
            rows = [row.values for part in parts.values() for row in part]
            name = spec.data.hub or Path((spec.data.path or spec.data.train)[0]).name
            texts, empty = from_rows(rows, name, text=text, title=title)
            outcome = upkeep.put(opened, texts, watch=bar)
            if empty:
                notes.append(f"{empty} of {len(rows)} rows have no {text}")
            outcome.note = "; ".join(notes)
    _tell(opened, outcome)


@app.command(
    epilog="Examples:\n\nkamerton index update runs/docs-index\n\nkamerton index update runs/docs-index docs --prune"
)
def update(
    index: Folder,
    documents: Annotated[list[Path] | None, typer.Argument(help="Files and folders; default: all it knows.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents whose files are gone.")] = False,
) -> None:
    """Read files again, and embed again those that changed. New files in folders that are named are added."""
    from kamerton.cli.display import OneBar
    from kamerton.retrieval import upkeep
    from kamerton.retrieval.index import PassageIndex

    opened = PassageIndex.open(index)
    with OneBar() as bar:
        outcome = upkeep.update(opened, documents or [], prune=prune, watch=bar)
    _tell(opened, outcome)


@app.command(epilog="Examples:\n\nkamerton index remove runs/docs-index docs/training.md")
def remove(
    index: Folder,
    documents: Annotated[list[str], typer.Argument(help="Files, or sources as list shows them.", show_default=False)],
) -> None:
    """Take documents out of an index."""
    from kamerton.files import expanded
    from kamerton.retrieval.index import PassageIndex

    opened = PassageIndex.open(index)
    known = {e.source for e in opened.entries()}
    sources = [d if d in known else expanded(d).resolve().as_posix() for d in documents]
    passages = opened.remove(sources)
    say(f"{len(set(sources))} documents with {passages} passages removed")


@app.command("list", epilog="Examples:\n\nkamerton index list runs/docs-index")
def list_(index: Folder) -> None:
    """List the documents of an index."""
    from kamerton.retrieval.index import PassageIndex

    opened = PassageIndex.open(index)
    entries, about = opened.entries(), opened.about
    lines = [f"{entry.passages:6}  {entry.source}  {entry.title}" for entry in entries]
    lines.append(
        f"{len(entries)} documents, {len(opened)} passages of up to {opened.cutting.size} tokens that share "
        f"{opened.cutting.overlap}, encoder {about['encoder']['name']}, {about['language']}"
    )
    for line in lines:
        say(line)


@app.command(
    epilog="Examples:\n\nkamerton index search runs/docs-index 'How is the learning rate chosen?'\n\n"
    "kamerton index search runs/docs-index 'paired bootstrap' --how full-text --count 3"
)
def search(
    index: Folder,
    question: Annotated[str, typer.Argument(help="A question, or words.", show_default=False)],
    how: Annotated[str, typer.Option(help="vector, full-text or hybrid.")] = "hybrid",
    count: Annotated[int, typer.Option(min=1, help="Passages.")] = 5,
) -> None:
    """Print the passages that answer a question best, with their sources."""
    from kamerton.retrieval.documents import DocumentError
    from kamerton.retrieval.index import HOWS, PassageIndex

    if how not in HOWS:
        raise DocumentError(f"no search is called '{how}'", where="--how", mend=f"use one of: {', '.join(HOWS)}")
    for n, hit in enumerate(PassageIndex.open(index).search(question, count, how), start=1):
        say(f"[{n}] {hit.place}  ({hit.score:.3f})")
        say(f"    {hit.source}")
        say(f"    {' '.join(hit.passage.text.split())}\n")


def _tell(index: PassageIndex, outcome: Outcome) -> None:
    for line in outcome.failed:
        say(f"passed over: {line}")
    if outcome.gone and not outcome.pruned:
        for source in outcome.gone:
            say(f"gone: {source}")
        say("remove them with --prune")
    if outcome.note:
        say(outcome.note)
    say(str(outcome))
    say(f"index {index.folder}: {len(index)} passages")
