"""Corpora with what the rooms above `text` know: test sets that must not be in them, labels for classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kamerton.errors import TaskError
from kamerton.resources import cores
from kamerton.text.corpus.recipe import CorpusRecipe, load_corpus_recipe
from kamerton.text.corpus.run import Corpus, Watch
from kamerton.text.corpus.run import build_corpus as _build

if TYPE_CHECKING:
    from kamerton.recipe import Recipe
    from kamerton.tasks import Task
    from kamerton.text.corpus.classifier import Features, TextClassifier
    from kamerton.yaml_source import FieldPath

__all__ = [
    "Corpus", "CorpusRecipe", "build_corpus", "labelled", "load_corpus_recipe", "measure_classifier",
    "train_classifier",
]  # fmt: skip


def build_corpus(
    recipe: CorpusRecipe | str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    *,
    workers: int | None = None,
    executor: str = "local",
    address: str | None = None,
    watch: Watch | None = None,
) -> Corpus:
    """Make a corpus from a recipe, its content, or its file.

    Args:
        workers: processes, by default one for each core; with `ray` pieces at a time, by default as there is room.
        executor: `local` or `ray`, with the `address` of the cluster (`kamerton.cluster`).

    Raises:
        KamertonError: the recipe, the test sets that it names, or the folder are wrong.
    """
    if isinstance(recipe, Mapping):
        recipe = CorpusRecipe.from_dict(recipe)
    elif not isinstance(recipe, CorpusRecipe):
        recipe = load_corpus_recipe(recipe)
    workers = workers or (cores() if executor == "local" else None)
    return _build(
        recipe, output, workers=workers, executor=executor, address=address, tests=test_sets(recipe), watch=watch
    )


def test_sets(recipe: CorpusRecipe) -> dict[str, dict[str, list[str]]]:
    """For each step that decontaminates: the texts of each recipe's test sets, questions with their answers.

    A set has the name of its recipe's file, with its folder where two files have one name.

    Raises:
        KamertonError: a recipe, or its local copy of data, is missing or wrong.
    """
    tests: dict[str, dict[str, list[str]]] = {}
    for spec in recipe.steps:
        if spec.name != "decontaminate":
            continue
        paths = [recipe.resolve(given.recipe) for given in spec.options.recipes]
        stems = Counter(path.stem for path in paths)
        sets = tests.setdefault(spec.label, {})
        for number, (path, given) in enumerate(zip(paths, spec.options.recipes, strict=True)):
            name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}/{path.stem}"
            task = _tested(recipe, (*spec.path, "recipes", number), path, given.data)
            sets[name] = [
                "\n".join([*(m.content for m in example.messages if m.role != "system"), *example.answers])
                for split in spec.options.splits for example in getattr(task, split)
            ]  # fmt: skip
    return tests


def _tested(recipe: CorpusRecipe, field: FieldPath, path: Path, data: str | None) -> Task:
    """The task of a recipe whose test set is looked for, all of it, from the hub or a local copy."""
    from kamerton.recipe import load_recipe
    from kamerton.recipe_task import LimitSpec
    from kamerton.tasks import load_task

    folder = None if data is None else recipe.input(data)
    if folder is not None and not folder.exists():
        mend = "give the folder that holds the task's data"
        raise recipe.error((*field, "data"), f"no such file or folder: {folder}", mend=mend)
    spec = load_recipe(path, data=folder).task.model_copy(update={"limit": LimitSpec()})
    try:
        return load_task(spec)
    except TaskError as error:
        if spec.data is None or spec.data.hub is None:
            raise
        mend = f"name a local copy of it: recipes: [{{recipe: {path.name}, data: FOLDER}}]"
        raise recipe.error(field, error.message, mend=mend) from error


def labelled(recipe: Recipe) -> dict[str, tuple[list[str], list[str]]]:
    """The texts and labels of a task recipe's splits, all of them: no template, no instruction, no limit.

    Raises:
        TaskError: its examples are not texts with one of several labels.
    """
    from kamerton.recipe import LimitSpec
    from kamerton.tasks import load_task

    spec = recipe.task.model_copy(
        update={"template": None, "instruction": None, "phrasings": (), "limit": LimitSpec(), "choices": True}
    )
    task = load_task(spec)
    splits = {}
    for name in ("train", "validation", "test"):
        examples = getattr(task, name)
        if any(not example.choices or len(example.messages) != 1 for example in examples):
            mend = "name a task whose columns are text and label"
            raise spec.error(("columns",), "its examples are not texts with one of several labels", mend=mend)
        splits[name] = ([example.messages[0].content for example in examples], [e.answers[0] for e in examples])
    return splits


def train_classifier(recipe: Recipe, features: Features, *, balanced: bool = False) -> TextClassifier:
    """Train a classifier of documents on a task's labels; its penalty is chosen on the validation split."""
    from kamerton.text.corpus.classifier import search

    splits = labelled(recipe)
    return search(*splits["train"], *splits["validation"], features, balanced=balanced)


def measure_classifier(classifier: TextClassifier, recipe: Recipe, split: str = "test") -> dict[str, Any]:
    """Accuracy, macro F1 and Matthews correlation on a split of a task."""
    from kamerton.text.corpus.classifier import measure

    return measure(classifier, *labelled(recipe)[split])
