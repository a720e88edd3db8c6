"""`kamerton feedback`: answers for people to label, and their labels as preference data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Let people judge a model's answers, and learn from that.")


@app.callback()
def _group() -> None:
    """Let people judge a model's answers, and learn from that."""


@app.command(
    epilog="Examples:\n\nkamerton feedback export demo examples/instructions.yaml --output label.jsonl --count 50\n\n"
    "kamerton feedback export runs/instructions-lora examples/instructions.yaml --output label.jsonl --answers 4"
)
def export(
    target: Annotated[str, typer.Argument(help="A tuned folder, a comparison (its winner), or a base.")],
    recipe: Annotated[Path, typer.Argument(help="The recipe that gives the questions.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The file to label, JSON lines.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    count: Annotated[int | None, typer.Option(min=1, help="At most so many questions; default: all.")] = None,
    answers: Annotated[int, typer.Option(min=2, help="Different answers to a question.")] = 2,
    temperature: Annotated[float, typer.Option(min=0)] = 1.0,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Set a field: task.max_answer_tokens=100.")] = None,
) -> None:
    """Sample different answers to a task's questions into a file for people to label.

    In each line fill in "chosen" (the number of the best answer, from 0) or "scores" (a number for each answer). The
    same command goes on where it was stopped; lines that are there are never changed.
    """
    from kamerton.recipe import load_recipe

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])  # before slow imports: most mistakes are here

    from rich.console import Console

    from kamerton.api import load
    from kamerton.cli.display import OneBar
    from kamerton.errors import KamertonError
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
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

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


@app.command(
    "import",
    epilog="Examples:\n\nkamerton feedback import label.jsonl --into preferences.jsonl\n\n"
    "kamerton feedback import anna.jsonl ben.jsonl --into preferences.jsonl",
)
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files that people labelled.", show_default=False)],
    into: Annotated[Path, typer.Option(help="The file of preferences; labels are merged into it.", show_default=False)],
) -> None:
    """Check labels and merge them into a file of preferences, which a recipe reads.

    The same question with the same answers: the newer label wins. A broken line is an error, and nothing is written.
    """
    from kamerton.feedback import merge

    done = merge(files, into)
    labels = f"{done.new} new, {done.changed} changed, {done.same} as they were"
    typer.echo(f"{into}: {done.total} questions with judged answers ({labels})")
    if done.repeated:
        typer.echo(f"{done.repeated} questions were there twice with the same answers; the later label was kept")
    if done.unlabelled:
        typer.echo(f"{done.unlabelled} lines without a label were left out")
