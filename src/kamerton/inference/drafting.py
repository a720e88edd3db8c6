"""Several tokens of one answer at a time: a rough copy of the model guesses them, one pass of the model checks them.

What the model itself would have said at each place is drawn from its own numbers with the answer's own random number
of that place (`sampling.py`), and guesses are drawn with the same one. So a guess is kept exactly where it is what
the model says, and the answer is, sampled or greedy, the one that decoding token by token gives, but for rounding.
Only for one answer alone: with many, the weights are read once for all of them anyway.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from torch import Tensor

from kamerton.base import CausalModel
from kamerton.base.attention import RowCache
from kamerton.inference.prefix import SharedPrefix
from kamerton.inference.sampling import Sampling, next_tokens

if TYPE_CHECKING:
    from kamerton.base.draft import Draft
    from kamerton.inference.generate import Row

WORTH_IT = 64
"""Tokens decoded alone before the rough copy is made: making it takes as long as it saves in about so many."""
MOST_AHEAD = 10
_FEWEST = 2


class Drafting:
    """Decides how far to guess, and guesses, for answers that are decoded alone.

    Args:
        model: the model. How many tokens it decoded alone so far is counted there.
    """

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self._ahead, self._tried, self._kept = 4, 0, 0

    def draft(self) -> Draft | None:
        """The copy that guesses the next tokens; None for going on token by token. Call it once for each step."""
        self.model.decoded_alone += 1
        if self.model.decoded_alone <= WORTH_IT or (self._tried > WORTH_IT and 2 * self._kept < self._tried):
            return None  # not repaid yet, or too often wrong
        return self.model.draft()

    def tokens(
        self, draft: Draft, prefix: SharedPrefix, cache: RowCache, row: Row, sampling: Sampling, ends: Container[int]
    ) -> tuple[Tensor, list[int], list[float]]:  # fmt: skip
        """The next tokens of the answer in slot 0 of the cache: at least one, at most as many as there is room for.

        The cache holds all of them but the last afterwards; set its length back where not all are taken.

        Returns:
            (n, V) logits of the n tokens, their ids, and their log-probabilities as `next_tokens` gives them.
        """
        before, done = int(cache.lengths[0]), len(row.tokens)
        guesses: list[int] = []
        token = row.tokens[-1]
        while len(guesses) < min(self._ahead, row.prompt.room - done - 1):
            hidden = prefix.forward([[token]], cache=cache, draft=draft).rows
            token = int(next_tokens(draft.output(hidden), sampling, [row.key], [done + len(guesses)])[0])
            guesses.append(token)
            if token in ends:
                break
        cache.lengths[0] = before
        hidden = prefix.forward([[row.tokens[-1], *guesses]], cache=cache, slots=[0]).rows
        logits = self.model.output(hidden)
        count = len(guesses) + 1
        found, logprobs = next_tokens(logits, sampling, [row.key] * count, list(range(done, done + count)))
        said = found.tolist()
        kept = next((i for i, guess in enumerate(guesses) if guess != said[i]), len(guesses))
        self._tried += len(guesses)
        self._kept += kept
        self._ahead = min(MOST_AHEAD, self._ahead + 2) if kept == len(guesses) else max(_FEWEST, kept + 1)
        cache.lengths[0] = before + kept + 1
        return logits[: kept + 1], said[: kept + 1], logprobs[: kept + 1].tolist()
