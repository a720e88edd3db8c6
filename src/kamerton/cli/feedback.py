"""`kamerton feedback`: answers for people to label, and their labels as preference data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kamerton.cli.options import say

app = typer.Typer(no_args_is_help=True, help="Let people judge a model's answers, and learn from that.")


@app.callback()
def _group() -> None:
    """Let people judge a model's answers, and learn from that."""


@app.command(
    epilog="Examples:\n\nkamerton feedback export demo examples/instructions.yaml --output label.jsonl --count 50\n\n"
    "kamerton feedback export runs/instructions-lora examples/instructions.yaml --output label.jsonl --answers 4\n\n"
    "kamerton feedback export labels.sqlite --output preferences.jsonl --kind comparison"
)
def export(
    target: Annotated[
        str, typer.Argument(help="A tuned folder, a comparison (its winner), or a base; or a store of labels.")
    ],
    output: Annotated[Path, typer.Option(help="The file to write, JSON lines.", show_default=False)],
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe that gives the questions; not with a store.", show_default=False)
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    count: Annotated[int | None, typer.Option(min=1, help="At most so many questions; default: all.")] = None,
    answers: Annotated[int, typer.Option(min=2, help="Different answers to a question.")] = 2,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: task.max_answer_tokens=100.")] = None,
    kind: Annotated[str | None, typer.Option(help="Of a store: comparison, ranking, rating or thumbs alone.")] = None,
    labeller: Annotated[list[str] | None, typer.Option(help="Of a store: this labeller's alone.")] = None,
) -> None:
    """Sample different answers to a task's questions into a file for people to label.

    In each line fill in "chosen" (the number of the best answer, from 0) or "scores" (a number for each answer). The
    same command goes on where it was stopped; lines that are there are never changed.

    Of a store of labels (`kamerton label`, the chat page) it writes what people said as preference data instead.
    """
    from kamerton.errors import KamertonError
    from kamerton.feedback.store import is_store

    if is_store(target):
        if recipe is not None:
            raise KamertonError("a store has its own questions", where=str(recipe), mend="leave the recipe out")
        _from_store(Path(target), output, kind, labeller or [])
        return
    if recipe is None:
        mend = "name the recipe with the questions; a store of labels needs none"
        raise KamertonError("is no store of labels, and there is no recipe", where=target, mend=mend)
    if kind or labeller:
        raise KamertonError("--kind and --labeller are for a store of labels", mend="leave them out")

    from kamerton.recipe import load_recipe

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here

    from kamerton.api import load
    from kamerton.cli.display import OneBar
    from kamerton.feedback import check_export
    from kamerton.feedback import export as run
    from kamerton.inference import Sampling
    from kamerton.tasks import load_task
    from kamerton.tasks.example import SPLITS

    if split not in SPLITS:
        raise KamertonError(f"no split '{split}'", mend=f"use {', '.join(SPLITS)}")
    task = load_task(loaded.task)
    plan = Sampling(
        max_tokens=task.max_answer_tokens, temperature=temperature, top_p=top_p, n=answers, seed=seed
    )  # fmt: skip
    examples = getattr(task, split)[:count]
    check_export(examples, plan)
    adapted = load(target)
    with OneBar() as bar:
        done = run(adapted, examples, output, plan, report=bar)
    there = f" ({done.kept} were there, {done.labelled} of them labelled)" if done.kept else ""
    say(f"{output}: {done.written} questions{there}")
    for number, what in (
        (done.fewer, f"questions have fewer than {answers} answers, because what was sampled was alike"),
        (done.alike, "questions were left out, because all that was sampled was alike"),
        (done.choices, "questions were left out, because they have choices"),
        (done.cut, "questions were cut to fit the model"),
    ):
        if number:
            say(f"{number} {what}")


def _from_store(path: Path, output: Path, kind: str | None, labellers: list[str]) -> None:
    """Labels of a store as a file of preferences."""
    from kamerton.errors import KamertonError
    from kamerton.feedback.preferences import from_store
    from kamerton.feedback.records import KINDS
    from kamerton.feedback.store import FeedbackStore
    from kamerton.files import write_jsonl

    chosen = next((one for one in KINDS if one == kind), None)
    if kind is not None and chosen is None:
        raise KamertonError(f"no kind {kind!r}", where="--kind", mend=f"use {', '.join(KINDS)}")
    if output.resolve() == path.resolve():
        raise KamertonError("is to be read and written", where=str(path), mend="name another file with --output")
    store = FeedbackStore(path, create=False)
    found = from_store(store, kind=chosen, labellers=labellers)
    store.close()
    write_jsonl(output, [one.record() for one in found.judged])
    typer.echo(f"{output}: {len(found.judged)} questions with judged answers, of {found.labels} labels")
    if found.bad:
        typer.echo(f"{found.bad} questions were left out, because people found all their answers bad")
    if found.skipped:
        typer.echo(f"{found.skipped} skipped questions were left out")


@app.command(
    "import",
    epilog="Examples:\n\nkamerton feedback import label.jsonl --into preferences.jsonl\n\n"
    "kamerton feedback import anna.jsonl ben.jsonl --into preferences.jsonl\n\n"
    "kamerton feedback import anna.jsonl --into labels.sqlite --labeller Anna",
)
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files that people labelled.", show_default=False)],
    into: Annotated[
        Path, typer.Option(help="The file of preferences, or the store (.sqlite), to merge into.", show_default=False)
    ],
    labeller: Annotated[str | None, typer.Option(help="Into a store: whose labels these are.")] = None,
) -> None:
    """Check labels and merge them into a file of preferences, which a recipe reads, or into a store of labels.

    The same question with the same answers: the newer label wins. A broken line is an error, and nothing is written.
    """
    from kamerton.errors import KamertonError
    from kamerton.feedback.store import is_store

    if is_store(into) or (into.suffix == ".sqlite" and not into.exists()):
        _into_store(files, into, labeller)
        return
    if labeller is not None:
        raise KamertonError("--labeller is for a store", where=str(into), mend="leave it out, or name a store")
    from kamerton.feedback import merge

    done = merge(files, into)
    labels = f"{done.new} new, {done.changed} changed, {done.same} as they were"
    typer.echo(f"{into}: {done.total} questions with judged answers ({labels})")
    if done.repeated:
        typer.echo(f"{done.repeated} questions were there twice with the same answers; the later label was kept")
    if done.unlabelled:
        typer.echo(f"{done.unlabelled} lines without a label were left out")


def _into_store(files: list[Path], into: Path, labeller: str | None) -> None:
    """Labels of files into a store, under a labeller's name."""
    from kamerton.errors import KamertonError
    from kamerton.feedback.preferences import import_labels
    from kamerton.feedback.store import FeedbackStore

    if labeller is None:
        raise KamertonError("labels in a store have a labeller", where=str(into), mend="name one with --labeller")
    store = FeedbackStore(into)
    try:
        done = import_labels(files, store, labeller)
    finally:
        store.close()
    typer.echo(f"{into}: {done.new} labels new, {done.changed} changed, {done.same} as they were")
    if done.unlabelled:
        typer.echo(f"{done.unlabelled} lines without a label were left out")
