"""Looks at a model in training: at each validation the same questions are sampled, and what came out is kept.

For objectives whose loss says nothing about the answers (a game between two networks). A person sees what changes, and
figures of diversity, length and reward can be made of it. The questions are spread evenly over the validation set (over
the training set where there is none), the same ones for every seed. All looks draw the same random numbers, so what
differs between them is the model and not chance. Everything is kept as one JSON text in a tensor, so that a run that
was stopped has it bit for bit.

What it leaves out: choices are not ranked, here a model always speaks freely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kamerton.base.model import LanguageModel
from kamerton.inference import Sampling
from kamerton.objectives.rollouts import sample
from kamerton.rendering import Rendered, Renderer
from kamerton.rewards.discriminator import CrossFitted
from kamerton.tasks.example import Example, Task
from kamerton.training.packed import as_tensor, from_tensor

QUERIES = 16
"""Questions that are sampled at each look, where there are so many."""
SAMPLES = 2
"""Answers to each: the fewest that show whether answers to one question differ."""

Score = Callable[[Sequence[Rendered], Sequence[int | None]], list[float]]
"""Mean score a token of answers, each with the number of its training example (None: not trained on)."""


@dataclass
class Look:
    """What a model said at one point of its training.

    Attributes:
        step: of the optimiser; 0: the start.
        texts, tokens, ended: (Q, S) of samples: text, token ids with the end token, whether they end inside the limit.
        scores: (Q, S) mean score a token, by discriminators as they are now that never saw the question's reference.
        start_scores: (Q, S) of the samples of the first look, by the same discriminators.
        reference_scores: (Q,) of the references, by the same; all scores are empty where there is no discriminator.
        statistics: (N, S') of the greedy answers to the validation set under the task's first metric.
    """

    step: int
    texts: list[list[str]]
    tokens: list[list[list[int]]]
    ended: list[list[bool]]
    scores: list[list[float]] = field(default_factory=list)
    start_scores: list[list[float]] = field(default_factory=list)
    reference_scores: list[float] = field(default_factory=list)
    statistics: list[list[float]] = field(default_factory=list)


class Looks:
    """All looks of one run.

    Args:
        renderer, task: what is asked, and how.
        limit: longest example in tokens.
        seed: of the samples.
        score: what gives answers their scores; None: nothing does.

    Attributes:
        examples: the questions.
        held_out: whether they are validation examples.
        references: their references, rendered.
        taken: the looks so far.
    """

    def __init__(self, renderer: Renderer, task: Task, *, limit: int | None, seed: int, score: Score | None) -> None:
        self.task, self._renderer, self._score = task, renderer, score
        self.held_out = bool(task.validation)
        split = task.validation or task.train
        count = min(QUERIES, len(split))
        numbers = [i * len(split) // count for i in range(count)]
        self.examples: tuple[Example, ...] = tuple(split[n] for n in numbers)
        self._owners: list[int | None] = [None if self.held_out else n for n in numbers]
        self.references = [renderer.example(e.messages, e.answers[0], limit=limit) for e in self.examples]
        self._sampling = Sampling(max_tokens=task.max_answer_tokens, temperature=1.0, n=SAMPLES, seed=seed * 7_919 + 23)
        self.taken: list[Look] = []

    @property
    def reference_tokens(self) -> list[int]:
        """Tokens of each reference, its end token included."""
        return [len(r.tokens) - r.prompt_length for r in self.references]

    @torch.no_grad()
    def take(self, step: int, model: LanguageModel) -> None:
        """Sample now; a look at the same step is replaced."""
        room = model.prompt_limit(self.task.max_answer_tokens)
        queries = [(i, self._renderer.fit(e.messages, room)[0]) for i, e in enumerate(self.examples)]
        said = sample(model, self._renderer, queries, self._sampling)
        look = Look(step, _grid([a.text for a in said]), _grid([a.said for a in said]), _grid([a.ended for a in said]))
        self.taken = [*(k for k in self.taken if k.step < step), look]
        if self._score is None:
            return
        owners = [self._owners[a.query] for a in said]
        look.scores = _grid(self._score([a.rendered for a in said], owners))
        first = look if len(self.taken) == 1 else self.taken[0]
        # prompts are those of now: the model's positions have not changed
        before = [_with_answer(a.rendered, first.tokens[a.query][i % SAMPLES]) for i, a in enumerate(said)]
        look.start_scores = _grid(self._score(before, owners))
        look.reference_scores = self._score(self.references, self._owners)

    def judged(self, statistics: np.ndarray) -> None:
        """The validation answers of the last look were judged: (N, S)."""
        if self.taken:
            self.taken[-1].statistics = statistics.tolist()

    def state(self) -> Tensor:
        """All looks, as bytes of JSON."""
        return as_tensor([asdict(look) for look in self.taken])

    def restore(self, state: Tensor) -> None:
        """Go on from what `state` gave."""
        self.taken = [Look(**look) for look in from_tensor(state)]


def mean_scores(
    judges: CrossFitted, features: Sequence[Tensor], rows: Sequence[Rendered], folds: Sequence[int | None]
) -> list[float]:
    """Mean score a token of answers, by the discriminators that never saw the reference.

    Args:
        features: (T, F) of each answer, at the positions before its tokens.
        folds: the half of the references that each answer's question is in; None: in neither, and all of them judge.
    """
    out = []
    for f, row, fold in zip(features, rows, folds, strict=True):
        tokens = torch.as_tensor(row.tokens[row.prompt_length :][: len(f)], device=f.device)
        by = range(judges.folds) if fold is None else [fold]
        out.append(float(torch.stack([judges.tokens(f, tokens, fold=k).mean() for k in by]).mean()))
    return out


T = TypeVar("T")


def _grid(flat: Sequence[T]) -> list[list[T]]:
    """Answers one after another as (Q, S)."""
    return [list(flat[i : i + SAMPLES]) for i in range(0, len(flat), SAMPLES)]


def _with_answer(row: Rendered, answer: Sequence[int]) -> Rendered:
    """The prompt of a row with another answer."""
    prompt = row.tokens[: row.prompt_length]
    return Rendered((*prompt, *answer), (*([0.0] * len(prompt)), *([1.0] * len(answer))))
