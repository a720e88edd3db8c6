"""Masked language modelling on a recipe's texts: its objective, and its accuracy on what was held out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from kamerton.base.model import LanguageModel
from kamerton.objectives.masked import Masked, signs_of
from kamerton.pretraining.goals import Goal, Metrics, Watch, read, told
from kamerton.pretraining.models import Started
from kamerton.recipe_pretrain import PretrainRecipe
from kamerton.training.faults import Room


def masked_goal(recipe: PretrainRecipe, started: Started, folder: Path, watch: Watch) -> Goal:
    """BERT's objective on the recipe's texts.

    Raises:
        RecipeError: the tokenizer has not the tokens for it, or the context holds no pair.
    """
    try:
        signs = signs_of(started.tokenizer)
    except ValueError as error:
        mend = "use a tokenizer with [MASK], [CLS] and [SEP]"
        raise recipe.error(("tokenizer",), str(error), mend=mend) from None
    if started.context < 8:
        raise recipe.error(("context",), f"a context of {started.context} holds no pair", mend="use at least 8")
    corpus, t, m = read(recipe, started, folder, watch), recipe.training, recipe.masking
    objective = Masked(
        corpus.train, corpus.held_out, signs, context=started.context, batch_size=t.batch_size, max_tokens=t.max_tokens,
        share=m.share, whole_words=m.whole_words, next_sentence=m.next_sentence, seed=t.seed,
    )  # fmt: skip

    def measure(model: LanguageModel) -> Metrics:
        sums: dict[str, float] = {}
        count = 0.0
        with torch.no_grad(), model.inference():
            every = Room(objective.notes).each(
                objective.validation(), lambda b: objective.loss(model, b), "in measuring"
            )
            for batch, found in every:
                for name, value in found.metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
                count += batch.count
        out: Metrics = {name: value / count for name, value in sums.items()} if count else {}
        return out | ({"masked_perplexity": math.exp(out["masked_loss"])} if out else {})

    about: dict[str, Any] = told(corpus)
    return Goal(objective, [about, corpus.digest], about, measure, None, list(corpus.notes))
