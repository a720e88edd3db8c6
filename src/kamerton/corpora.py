"""Corpora with what the rooms above `text` know: the test sets of task recipes, which a corpus must not hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kamerton.text.corpus.recipe import CorpusRecipe, load_corpus_recipe
from kamerton.text.corpus.run import Corpus, Watch
from kamerton.text.corpus.run import build_corpus as _build

__all__ = ["Corpus", "CorpusRecipe", "build_corpus", "load_corpus_recipe"]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_corpus(
    recipe: CorpusRecipe | str | Path | Mapping[str, Any],
    output: str | Path | None = None,
    *,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Corpus:
    """Make a corpus from a recipe, its content, or its file; `workers`: processes, by default one for each core.

    Raises:
        KamertonError: the recipe, the test sets that it names, or the folder are wrong.
    """
    if isinstance(recipe, Mapping):
        recipe = CorpusRecipe.from_dict(recipe)
    elif not isinstance(recipe, CorpusRecipe):
        recipe = load_corpus_recipe(recipe)
    return _build(recipe, output, workers=workers or cores(), tests=_tests(recipe), watch=watch)


def _tests(recipe: CorpusRecipe) -> dict[str, dict[str, list[str]]]:
    """For each step that decontaminates: the texts of each recipe's test sets, questions with their answers."""
    tests: dict[str, dict[str, list[str]]] = {}
    for spec in recipe.steps:
        if spec.name != "decontaminate":
            continue
        from kamerton.recipe import load_recipe
        from kamerton.tasks import load_task

        sets = tests.setdefault(spec.label, {})
        for given in spec.options.recipes:
            path = recipe.resolve(given)
            task = load_task(load_recipe(path).task)
            sets[path.stem] = [
                "\n".join([*(m.content for m in example.messages if m.role != "system"), *example.answers])
                for split in spec.options.splits for example in getattr(task, split)
            ]  # fmt: skip
    return tests
