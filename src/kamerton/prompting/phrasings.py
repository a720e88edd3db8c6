"""Phrasings of a task's instruction: frames around instruction and question, and whether a score hangs on them.

The frames below are the project's own. A phrasing applies to every turn of the user's, so that solved examples in
front of a question are phrased as the question is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kamerton.tasks.example import Conversation, Message

_PLACE = re.compile(r"\{(instruction|question)\}")


class Phrasing(BaseModel):
    """One way to put a question: texts in which `{instruction}` and `{question}` stand for the task's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", description="a short name for the report")
    system: str = Field(default="{instruction}", description="the system message; none where it comes out empty")
    question: str = Field(default="{question}", description="each turn of the user's")

    @field_validator("question")
    @classmethod
    def _asks(cls, text: str) -> str:
        if "{question}" not in text:
            raise ValueError("a phrasing's question must hold {question}")
        return text

    def __call__(self, conversation: Conversation) -> Conversation:
        """The conversation in this phrasing."""
        spoken = conversation[1:] if conversation and conversation[0].role == "system" else conversation
        instruction = conversation[0].content if len(spoken) < len(conversation) else ""

        def write(template: str, question: str) -> str:
            if not instruction:  # the words around it close up
                template = re.sub(r"\{instruction\}\s*", "", template)
            filled = _PLACE.sub(lambda m: instruction if m.group(1) == "instruction" else question, template)
            return filled.strip("\n")

        system = write(self.system, "")
        return (
            *((Message("system", system),) if system.strip() else ()),
            *(Message("user", write(self.question, m.content)) if m.role == "user" else m for m in spoken),
        )


PHRASINGS = (
    Phrasing(name="as the task has it"),
    Phrasing(name="instruction in the question", system="", question="{instruction}\n\n{question}"),
    Phrasing(name="question and answer", question="Question: {question}\nAnswer:"),
    Phrasing(name="instruction behind the question", system="", question="{question}\n\n{instruction}"),
    Phrasing(name="input and output", question="Input: {question}\nOutput:"),
    Phrasing(name="all in one", system="", question="{instruction}\n\nQuestion: {question}\nAnswer:"),
    Phrasing(name="headings", system="", question="### Task\n{instruction}\n\n### Input\n{question}\n\n### Answer"),
    Phrasing(name="terse", system="{instruction} Give the answer and nothing else."),
    Phrasing(name="polite", system="Please help me with this. {instruction} Thank you!"),
    Phrasing(name="expert", system="You know this field well and take care to be right. {instruction}"),
)
"""What is tried where a recipe names none, the task's own first."""


def phrasings(given: Sequence[str | Phrasing] | None, conversation: Conversation) -> list[Phrasing]:
    """The phrasings to try, each named, without those that come out the same on a conversation of the task.

    Args:
        given: of a recipe: a text with `{question}` is a question without a system message, another text replaces the
            instruction. None: `PHRASINGS`.
        conversation: one of the task's.
    """
    out: dict[Conversation, Phrasing] = {}
    for number, one in enumerate(given if given is not None else PHRASINGS):
        if isinstance(one, str):
            made = Phrasing(system="", question=one) if "{question}" in one else Phrasing(system=one)
        else:
            made = one
        named = made if made.name else made.model_copy(update={"name": f"phrasing {number + 1}"})
        out.setdefault(made(conversation), named)
    return list(out.values())


def spread_p_value(
    statistics: NDArray[np.float64],
    aggregate: Callable[[NDArray[np.float64], float], NDArray[np.float64]],
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """How often the best and the worst of P phrasings would lie this far apart if phrasings made no difference.

    Paired: within each question the phrasings change places at random, all P together, so that the p-value holds for
    the best and the worst of many and not only for two that were named before.

    Args:
        statistics: (P, N, S) of a metric, for each phrasing and question.
        aggregate: (…, S) sums and the number of questions → values.
        permutations, seed: of the test.
    """
    count, questions, _ = statistics.shape
    rng = np.random.default_rng([seed, 24])

    def spread(rows: NDArray[np.float64]) -> float:
        values = np.asarray(aggregate(rows.sum(1), float(questions)))
        return float(values.max() - values.min())

    observed = spread(statistics)
    extreme = 0
    for _ in range(permutations):
        places = rng.random((count, questions)).argsort(0)
        extreme += spread(np.take_along_axis(statistics, places[:, :, None], axis=0)) >= observed - 1e-12
    return (extreme + 1) / (permutations + 1)
