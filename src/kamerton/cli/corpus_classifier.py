"""`kamerton corpus classifier`: train and measure a classifier of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Train and measure a classifier of documents.")
Recipe = Annotated[Path, typer.Argument(help="A task recipe with texts and labels (YAML).", show_default=False)]
Data = Annotated[Path | None, typer.Option(help="A local copy of the task's data: a folder or file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Set a field of the recipe.")]


@app.callback()
def _group() -> None:
    """Train and measure a classifier of documents."""


@app.command(
    epilog="Examples:\n\nkamerton corpus classifier train examples/cola.yaml --output runs/grammar\n\n"
    "kamerton corpus classifier train examples/sst2.yaml --data ~/data/sst2 --output runs/tone --characters 0"
)
def train(
    recipe: Recipe,
    output: Annotated[Path, typer.Option(help="Folder for the classifier.", show_default=False)],
    data: Data = None,
    words: Annotated[int, typer.Option(min=0, max=5, help="Longest sequence of words; 0: none.")] = 2,
    characters: Annotated[int, typer.Option(min=0, max=8, help="Longest sequence of characters; 0: none.")] = 5,
    bits: Annotated[int, typer.Option(min=10, max=24, help="2 to this power are the buckets.")] = 18,
    lower: Annotated[bool, typer.Option(help="Ignore upper and lower case.")] = True,
    balanced: Annotated[bool, typer.Option(help="All labels count alike.")] = False,
    set_: Set = None,
) -> None:
    """Train a linear classifier over hashed n-grams on a task's labels.

    All training examples are used; the penalty is chosen on the validation split. The step `classifier` of a corpus
    takes the folder.
    """
    from kamerton.corpora import train_classifier
    from kamerton.errors import KamertonError
    from kamerton.recipe import load_recipe
    from kamerton.text.corpus.classifier import Features

    if not words and not characters:
        raise KamertonError("nothing is looked at", where="--words, --characters", mend="give one of them more than 0")
    if output.is_file():
        raise KamertonError("is a file", where=output, mend="name a folder")
    loaded = load_recipe(recipe, data=data, overrides=set_ or [])
    features = Features(words=words, characters=characters, bits=bits, lower=lower)
    made = train_classifier(loaded, features, balanced=balanced)
    made.save(output)
    _say(made.about["validation"], f"validation, penalty {made.about['l2']:g}, {made.about['texts']:,} texts")
    typer.echo(f"labels: {', '.join(made.labels)}\n{output}")


@app.command("eval", epilog="Examples:\n\nkamerton corpus classifier eval runs/grammar examples/cola.yaml")
def eval_(
    classifier: Annotated[Path, typer.Argument(help="The classifier's folder.", show_default=False)],
    recipe: Recipe,
    data: Data = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Which examples.")] = "test",
    set_: Set = None,
) -> None:
    """Measure a classifier on a task's examples."""
    from kamerton.corpora import measure_classifier
    from kamerton.recipe import load_recipe
    from kamerton.text.corpus.classifier import TextClassifier

    loaded = load_recipe(recipe, data=data, overrides=set_ or [])
    _say(measure_classifier(TextClassifier.load(classifier), loaded, split), split)


def _say(figures: dict[str, Any], what: str) -> None:
    typer.echo(
        f"{what}: accuracy {figures['accuracy']:.3f} (largest label {figures['largest_label']:.3f}), "
        f"macro F1 {figures['macro_f1']:.3f}, Matthews {figures['matthews']:.3f}, {figures['texts']:,} texts"
    )
