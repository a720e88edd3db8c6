"""`judge`: a language model says how good an answer is (RLAIF: Bai et al. 2022, arXiv 2212.08073; Lee et al. 2023,
arXiv 2309.00267).

As a reward it grades by a rubric. Nothing is sampled: the grade is the expectation over the allowed grades under the
judge's own probabilities of them as what follows "Grade: ", brought to 0 … 1. As a labeller it `compare`s two answers
in both orders, since judges like one place better than the other (Zheng et al. 2023, arXiv 2306.05685): a verdict that
changes with the order is a tie, and how often that is so is the order bias.

An answer is off the format where less than half of the judge's probability is on what it may say. Such answers are
counted; when all were, the judge says nothing and that is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from kamerton.base.load import Base, check_source, load_base
from kamerton.base.work import flops
from kamerton.errors import RewardError
from kamerton.inference import Engine
from kamerton.rewards.judge_prompts import (
    COMPARE,
    COMPARED,
    GRADE,
    GRADED,
    RUBRIC,
    to_compare,
    to_grade,
    unknown_place,
)
from kamerton.rewards.reward import checked
from kamerton.rewards.verifier import Thought, behind_thought
from kamerton.tasks.example import Conversation, Example, Task
from kamerton.tuning.parameterisation import Options

ON_FORMAT = 0.5
"""Share of a judge's probability that must be on what it may say."""


class JudgeOptions(Options):
    """Options of `judge`."""

    model: str | None = Field(None, description="a folder, hub id, GGUF file or `demo`; none: the base as it is before")
    rubric: str = Field(RUBRIC, description="what makes an answer good")
    lowest: int = Field(1, ge=0, description="worst grade")
    highest: int = Field(10, le=100, description="best grade")
    grade_prompt: str | None = Field(
        None, description="another prompt, with places {question}, {answer}, {rubric}, {lowest}, {highest}, {reference}"
    )
    compare_prompt: str | None = Field(
        None, description="another prompt to compare by, with {question}, {first}, {second}, {rubric}, {reference}"
    )
    thought: Thought = Field("cut", description="cut, required, kept: what is shown of an answer, as of `exact`")
    max_batch_tokens: int = Field(8192, gt=0, description="tokens in one pass")

    @field_validator("grade_prompt", "compare_prompt")
    @classmethod
    def _places(cls, template: str | None, info: Any) -> str | None:
        wrong = unknown_place(info.field_name, template) if template is not None else None
        if wrong:
            raise ValueError(wrong)
        return template

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} is not below highest {self.highest}; write lowest: 1, highest: 10")
        return self


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of pairs of answers.

    Attributes:
        verdicts: (N,) 1 where the first is better in both orders, −1 where the second is, 0 (tie) otherwise.
        preference: (N,) the probability that the first is better, half of a tie's counted; mean of both orders.
        orders: (N, 2) 1, 0 or −1 as above, in each order: the first answer shown first, and shown second.
        off: (N,) whether the judge was off its format in either order; its verdict is a tie then.
    """

    verdicts: np.ndarray
    preference: np.ndarray
    orders: np.ndarray
    off: np.ndarray

    @property
    def order_bias(self) -> float:
        """Share of the questions whose verdict changes with the order; 0 for none."""
        return float((self.orders[:, 0] != self.orders[:, 1]).mean()) if len(self.orders) else 0.0

    @property
    def shown_first(self) -> float:
        """Share of the decided verdicts, both orders counted, for the answer shown first; 0.5: no bias."""
        decided = np.array([1, -1]) * self.orders
        return float((decided > 0).sum() / max(1, (decided != 0).sum())) if (decided != 0).any() else 0.5

    @property
    def ties(self) -> float:
        """Share of ties; 0 for no pairs."""
        return float((self.verdicts == 0).mean()) if len(self.verdicts) else 0.0


class Judge:
    """A language model as a judge.

    Args:
        base: the judge.
        options: of it.
    """

    summary: ClassVar[str] = "a language model grades by a rubric, or compares in both orders"
    options: ClassVar[type[Options]] = JudgeOptions
    short: ClassVar[str] = "model"
    name = "judge"
    needs_references = False
    range = (0.0, 1.0)

    def __init__(self, base: Base, options: JudgeOptions) -> None:
        self.o, self._who = options, base.info.name
        self._engine = Engine(base.model, base.renderer, max_batch_tokens=options.max_batch_tokens)
        self._flops = 0.0
        # graded, off the format, cut; compared, changed with the order, ties, off the format, cut
        self._counts = dict.fromkeys(("graded", "off", "cut", "compared", "changed", "ties", "astray", "shortened"), 0)

    @classmethod
    def build(cls, base: Base, task: Task, options: Any) -> Judge:  # noqa: ARG003
        if options.model is None:
            return cls(base, options)
        return cls(load_base(options.model, dtype=base.info.dtype, device=base.info.device), options)  # type: ignore[arg-type]

    @classmethod
    def check(cls, base: Base, task: Task, options: Any) -> None:  # noqa: ARG003
        if options.model is not None:
            check_source(options.model)

    # -- grades -------------------------------------------------------------------------------------------------------

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        grades = self.grades(examples, answers)
        return checked(self.name, examples, answers, (grades - self.o.lowest) / (self.o.highest - self.o.lowest))

    def grades(self, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
        """(B,) float64 expected grades, lowest … highest; the lowest where there is no answer behind a thought."""
        o, grades = self.o, np.arange(self.o.lowest, self.o.highest + 1)
        shown = [behind_thought(answer, o.thought) for answer in answers]
        out, asked = np.full(len(answers), float(o.lowest)), [i for i, text in enumerate(shown) if text is not None]
        prompts = [
            to_grade(o.grade_prompt or GRADE, examples[i], shown[i] or "", o.rubric, o.lowest, o.highest) for i in asked
        ]
        mass, cut = self._masses(prompts, GRADED, [str(grade) for grade in grades])
        total, counts = mass.sum(1), self._counts
        off = total < ON_FORMAT
        out[asked] = np.where(total > 0, (mass * grades).sum(1) / np.where(total > 0, total, 1), o.lowest)
        counts["graded"] += len(asked)
        counts["off"] += int(off.sum())
        counts["cut"] += cut
        if asked and counts["off"] == counts["graded"]:
            raise self._silent("graded", examples[asked[0]])
        return out

    # -- pairs --------------------------------------------------------------------------------------------------------

    def compare(self, examples: Sequence[Example], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Compare two answers to each question, in both orders.

        Raises:
            RewardError: the judge was off its format for all pairs so far.
        """
        template, texts = self.o.compare_prompt or COMPARE, []
        for example, *pair in zip(examples, first, second, strict=True):
            one, other = (behind_thought(answer, self.o.thought) or "" for answer in pair)
            texts += [to_compare(template, example, a, b, self.o.rubric) for a, b in ((one, other), (other, one))]
        mass, cut = self._masses(texts, COMPARED, ["A", "B", "C"])
        mass = mass.reshape(-1, 2, 3)  # (N, order, which)
        mass[:, 1, :2] = mass[:, 1, 1::-1].copy()  # the first answer, the second, neither
        total = mass.sum(2)
        off = (total < ON_FORMAT).any(1)
        share = mass / np.where(total > 0, total, 1)[..., None]
        orders = np.array([1, -1, 0])[mass.argmax(2)]
        verdicts = np.where((orders[:, 0] == orders[:, 1]) & ~off, orders[:, 0], 0)
        preference = np.where((total > 0).all(1), (share[..., 0] + share[..., 2] / 2).mean(1), 0.5)
        found, counts = Verdicts(verdicts, preference, orders, off), self._counts
        for name, number in (("compared", len(off)), ("changed", (orders[:, 0] != orders[:, 1]).sum()),
                             ("ties", (verdicts == 0).sum()), ("astray", off.sum()), ("shortened", cut)):  # fmt: skip
            counts[name] += int(number)
        if len(off) and counts["astray"] == counts["compared"]:
            raise self._silent("compared", examples[0])
        return found

    # -- what was found -----------------------------------------------------------------------------------------------

    @property
    def flops(self) -> float:
        """Operations so far."""
        return self._flops

    @property
    def notes(self) -> list[str]:
        c, who, out = self._counts, f"judge {self._who}", []
        if c["graded"]:
            out.append(f"{who}: {c['graded']} answers graded, {c['off']} of them off the format, {c['cut']} cut to fit")
        if c["compared"]:
            out.append(
                f"{who}: {c['compared']} pairs compared in both orders; the verdict changes with the order for "
                f"{c['changed'] / c['compared']:.0%}, {c['ties']} ties, {c['astray']} off the format, "
                f"{c['shortened']} prompts cut to fit"
            )
        return out

    def state(self) -> dict[str, Tensor]:
        """What was counted."""
        return {
            "counts": torch.tensor(list(self._counts.values())),
            "flops": torch.tensor(self._flops, dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._counts = dict(zip(self._counts, state["counts"].tolist(), strict=True))
        self._flops = float(state["flops"])

    def _silent(self, done: str, example: Example) -> RewardError:
        number, what = self._counts[done], "answers" if done == "graded" else "pairs"
        prompt = "grade_prompt" if done == "graded" else "compare_prompt"
        message = f"{self._who} is off its format each time ({number} {what} {done}, the first to example {example.id})"
        return RewardError(message, where=f"reward {self.name}", mend=f"name another model, or another {prompt}")

    # -- probabilities ------------------------------------------------------------------------------------------------

    def _masses(
        self, conversations: Sequence[Conversation], prefix: str, outcomes: Sequence[str]
    ) -> tuple[np.ndarray, int]:
        """(N, K) probability of each outcome behind the prefix, as what is said there; and prompts that were cut.

        An outcome whose tokens begin another one's (1 and 10) has what is left of it.
        """
        renderer, engine = self._engine.renderer, self._engine
        said = [renderer.answer(prefix + outcome, end=False) for outcome in outcomes]
        fitted = [engine.shorten(c, max(map(len, said))) for c in conversations]
        prompts = [renderer.prompt(c) for c, _ in fitted]
        shared = next(i for i in range(len(said[0]) + 1) if len({tuple(s[: i + 1]) for s in said}) > 1)
        before = engine.model.work.copy()
        rows = engine.token_log_probs([p for p in prompts for _ in said], said * len(prompts))
        self._flops += flops(engine.model.work - before, engine.model.hf)
        logs = torch.stack([row[shared:].double().sum() for row in rows]) if rows else torch.zeros(0)
        whole = logs.exp().numpy().reshape(-1, len(said))
        mass = whole.copy()
        for i, own in enumerate(said):
            longer = [j for j, s in enumerate(said) if len(s) > len(own) and s[: len(own)] == own]
            nearest = [j for j in longer if not any(said[j][: len(said[k])] == said[k] for k in longer if k != j)]
            mass[:, i] -= whole[:, nearest].sum(1)
        return np.maximum(mass, 0.0), sum(cut for _, cut in fitted)
