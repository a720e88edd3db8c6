"""`choice`: of a closed set, the answer names the right one, by its text or its letter (A is the first).

The rule, in this order: the whole answer is a choice's text; it is a letter ("b", "(B)", "B."); it says so ("The
answer is B"); it begins with a letter and a mark ("B) river"); exactly one choice's text stands in it as whole words
(of two choices of which one is part of the other, the longer). Otherwise it names none.
"""

from __future__ import annotations

import re

from pydantic import Field

from kamerton.evaluation.metrics import class_name, normalise
from kamerton.rewards.verifier import Verifier, VerifierOptions
from kamerton.tasks.example import Example

_SAID = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[(\[*\"]*([A-Z])(?=[)\].,:;*\"]|\s*$|\s*\n)")
_HEAD = re.compile(r"\s*[(\[]?([A-Za-z])[)\].:](?=\s|$)")


class ChoiceOptions(VerifierOptions):
    """Options of `choice`."""

    letters: bool = Field(True, description="a letter names a choice: A the first, B the second")


class Choice(Verifier):
    """1 where the answer names an accepted choice, else 0."""

    name = "choice"
    summary = "of several choices the answer names the right one, by text or letter"
    options = ChoiceOptions
    o: ChoiceOptions

    def fits(self, example: Example) -> None:
        if not example.choices:
            raise self.refusal(example, "has no choices", "use exact, or give the task choices")
        if all(self.pick(answer, example) is None for answer in example.answers):
            what = f"the answer {example.answers[0][:60]!r} is none of its choices"
            raise self.refusal(example, what, "mend the answer or the choices")

    def score(self, answer: str, example: Example) -> float:
        if not example.choices:
            self.fits(example)
        given = self.pick(answer, example)
        return float(given is not None and given in {self.pick(reference, example) for reference in example.answers})

    def pick(self, text: str, example: Example) -> int | None:
        """The number of the choice that a text names; None for none."""
        names = [class_name(choice) for choice in example.choices]
        whole = class_name(text)
        if whole in names:
            return names.index(whole)
        if self.o.letters:
            said, head = _SAID.findall(text), _HEAD.match(text)
            found = [whole.strip("()[].: "), *said[-1:], *([head[1]] if head else [])]
            for letter in (f.casefold() for f in found):
                if letter in names:
                    return names.index(letter)
                if len(letter) == 1 and 0 <= ord(letter) - ord("a") < len(names):
                    return ord(letter) - ord("a")
        spaced = normalise(text)
        inside = [n for n in dict.fromkeys(names) if n and re.search(rf"(?<!\w){re.escape(n)}(?!\w)", spaced)]
        longest = [n for n in inside if not any(n != m and n in m for m in inside)]
        return names.index(longest[0]) if len(longest) == 1 else None
