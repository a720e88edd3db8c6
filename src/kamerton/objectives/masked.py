"""BERT's two objectives (Devlin et al. 2019, arXiv 1810.04805): masked tokens, and whether a segment follows another.

Of each sequence 15% of the tokens are predicted; of these 80% are replaced by the mask token, 10% by a random one, and
10% are left as they are. With whole words, all pieces of a picked word are predicted together. A sequence is the start
token, a segment, a separator, and where the next sentence is asked for a second segment and a separator: in half of the
pairs the text that follows, else a piece from elsewhere. Segments are cut at words, not at sentences, and a pair that
does not belong together may come from the same document where there is but one; both differ from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from kamerton.base.masked_model import MaskedModel
from kamerton.base.model import LanguageModel
from kamerton.objectives.packed_contexts import Stream
from kamerton.training.batches import order
from kamerton.training.objective import Loss


@dataclass(frozen=True, slots=True)
class Signs:
    """What the objective knows of a vocabulary.

    Attributes:
        mask, start, separator, pad: ids of special tokens.
        ordinary: (n,) ids that may stand in a text, from which random ones are drawn.
        begins: (V,) whether a token begins a word.
    """

    mask: int
    start: int
    separator: int
    pad: int
    ordinary: np.ndarray
    begins: np.ndarray


def signs_of(tokenizer: Any) -> Signs:
    """The signs of a transformers tokenizer.

    Where pieces that go on are written `##…` (WordPiece) all others begin a word; else those do that start with a space
    (`Ġ`, `▁`) or with no letter or digit.

    Raises:
        ValueError: it has no mask, start or separator token.
    """
    ids = {"mask": tokenizer.mask_token_id, "start": tokenizer.cls_token_id, "separator": tokenizer.sep_token_id}
    missing = [name for name, value in ids.items() if value is None]
    if missing:
        raise ValueError(f"the tokenizer has no {' and no '.join(missing)} token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.sep_token_id
    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    word_piece = any(p.startswith("##") for p in pieces)
    begins = np.array(
        [not p.startswith("##") if word_piece else p[:1] in "Ġ▁" or not p[:1].isalnum() for p in pieces], dtype=bool
    )
    ordinary = np.array([i for i in range(size) if i not in special], dtype=np.int64)
    return Signs(**ids, pad=pad, ordinary=ordinary, begins=begins)


def spoil(
    ids: np.ndarray, rng: np.random.Generator, signs: Signs, share: float, *, whole_words: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of one sequence → spoiled tokens, and the places (n,) that are predicted, ascending.

    Special tokens are never picked. At least one place is, where there is an ordinary token.
    """
    special = (ids == signs.start) | (ids == signs.separator) | (ids == signs.pad)
    places = np.flatnonzero(~special)
    if not len(places):
        return ids, places
    wanted = max(1, round(share * len(places)))
    if whole_words:
        # a word ends where another begins, or at a special token
        after_special = np.concatenate([[True], special[:-1]])
        heads = signs.begins[ids] | after_special
        words = np.split(places, np.flatnonzero(heads[places]))
        words = [word for word in words if len(word)]
        picked: list[int] = []
        for i in rng.permutation(len(words)):
            if len(picked) + len(words[i]) <= wanted or not picked:
                picked += words[i].tolist()
        chosen = np.sort(np.asarray(picked))
    else:
        chosen = np.sort(rng.choice(places, wanted, replace=False))
    out = ids.copy()
    fate = rng.random(len(chosen))
    out[chosen[fate < 0.8]] = signs.mask
    swapped = chosen[(fate >= 0.8) & (fate < 0.9)]
    out[swapped] = rng.choice(signs.ordinary, len(swapped))
    return out, chosen


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """(B, T) spoiled tokens, their segments and lengths; where (row, place) and which tokens are predicted.

    Attributes:
        follows: (B,) 0 where the second segment follows the first, 1 where it does not; None where it is not asked.
        each: what the question of a sequence counts, where not its share of the predicted tokens.
    """

    ids: np.ndarray
    segments: np.ndarray
    lengths: np.ndarray
    where: tuple[np.ndarray, np.ndarray]
    targets: np.ndarray
    follows: np.ndarray | None
    each: float | None = None

    @property
    def count(self) -> float:
        return float(len(self.targets))

    @property
    def asked(self) -> float:
        """What each sequence's question counts: all of them as much as the tokens that are predicted."""
        return self.count / len(self.ids) if self.each is None else self.each

    def halves(self) -> tuple[MaskedBatch, ...]:
        """Two microbatches whose summed losses are that of this one; () where it is a single sequence."""
        count, out = len(self.ids), []
        for first, last in [(0, count // 2), (count // 2, count)] if count > 1 else []:
            longest = int(self.lengths[first:last].max())
            row, place = self.where
            own = (row >= first) & (row < last)
            out.append(MaskedBatch(
                self.ids[first:last, :longest], self.segments[first:last, :longest], self.lengths[first:last],
                (row[own] - first, place[own]), self.targets[own],
                None if self.follows is None else self.follows[first:last], self.asked,
            ))  # fmt: skip
        return tuple(out)

    @property
    def examples(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


class Masked:
    """Masked language modelling, with next-sentence prediction where it is asked for.

    Args:
        train, held_out: the streams; no `held_out` where nothing is validated.
        signs: of the vocabulary.
        context: tokens of a sequence, special ones included.
        batch_size: sequences in an optimiser step.
        max_tokens: tokens in one pass; a step of more is accumulated.
        share, whole_words: what is predicted.
        next_sentence: ask for it.
        seed: of everything that is drawn.
    """

    name = "masked"
    dealt: ClassVar[tuple[str, ...]] = ("steps", "validation")

    def __init__(
        self, train: Stream, held_out: Stream | None, signs: Signs, *, context: int, batch_size: int,
        max_tokens: int = 16384, share: float = 0.15, whole_words: bool = False, next_sentence: bool = True,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.train, self.held_out, self.signs, self.context = train, held_out, signs, context
        self.share, self.whole_words, self.next_sentence, self.seed = share, whole_words, next_sentence, seed
        self._room = context - (3 if next_sentence else 2)
        self.pieces = max(1, len(train) // self._room)
        self.batch_size, self.max_tokens = min(batch_size, self.pieces), max(max_tokens, context)
        self.notes: list[str] = []
        if not next_sentence:  # whose loss is a mean over a pass
            self.accumulation = 1

    @property
    def epoch_examples(self) -> int:
        return self.pieces

    def batches(self, step: int, model: LanguageModel) -> Sequence[MaskedBatch]:  # noqa: ARG002 - data, not rollouts
        picked = order(step, self.batch_size, self.pieces, self.seed)
        return self._made(self.train, [(piece, [self.seed, step, i]) for i, piece in enumerate(picked)], shift=True)

    def validation(self) -> Sequence[MaskedBatch]:
        if self.held_out is None:
            return []
        pieces = max(1, len(self.held_out) // self._room)
        return self._made(self.held_out, [(piece, [0, piece]) for piece in range(pieces)], shift=False)

    def _made(self, stream: Stream, picked: Sequence[tuple[int, list[int]]], *, shift: bool) -> list[MaskedBatch]:
        most = max(1, min(self.max_tokens // self.context, -(-len(picked) // getattr(self, "accumulation", 1))))
        out = []
        for start in range(0, len(picked), most):
            rows = []
            for piece, seed in picked[start : start + most]:
                rng = np.random.default_rng(seed)
                moved = int(rng.integers(self._room)) if shift else 0
                rows.append(self.sequence(stream, piece * self._room + moved, rng))
            out.append(self._batch(rows))
        return out

    def sequence(
        self, stream: Stream, at: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, int, int, np.ndarray, np.ndarray]:
        """A sequence that starts at a place of a stream.

        Returns:
            Its spoiled ids, where its second segment begins, 1 where that does not follow, the places that are
            predicted, and their tokens.
        """
        at = max(0, min(at, len(stream) - self._room))
        text = stream.tokens[at : at + self._room].astype(np.int64)
        text = text[text != stream.end]  # documents meet: a separator of segments means something else
        s, away = self.signs, 0
        if not self.next_sentence or len(text) < 4:
            ids = np.concatenate([[s.start], text, [s.separator]])
            second = len(ids)
        else:
            heads = np.flatnonzero(s.begins[text[1:-1]]) + 1
            split = int(rng.choice(heads)) if len(heads) else len(text) // 2
            a, b = text[:split], text[split:]
            if rng.random() < 0.5:
                away, other = 1, int(rng.integers(max(1, len(stream) - len(b))))
                b = stream.tokens[other : other + len(b)].astype(np.int64)
                b = b[b != stream.end]
            ids = np.concatenate([[s.start], a, [s.separator], b, [s.separator]])
            second = len(a) + 2
        spoiled, chosen = spoil(ids, rng, s, self.share, whole_words=self.whole_words)
        return spoiled, second, away, chosen, ids[chosen]

    def _batch(self, rows: Sequence[tuple[np.ndarray, int, int, np.ndarray, np.ndarray]]) -> MaskedBatch:
        lengths = np.array([len(row[0]) for row in rows])
        ids = np.full((len(rows), int(lengths.max())), self.signs.pad, dtype=np.int64)
        segments = np.zeros_like(ids)
        for i, (row, second, *_) in enumerate(rows):
            ids[i, : len(row)] = row
            segments[i, second : len(row)] = 1
        which = np.repeat(np.arange(len(rows)), [len(row[3]) for row in rows])
        where = which, np.concatenate([row[3] for row in rows])
        follows = np.array([row[2] for row in rows]) if self.next_sentence else None
        return MaskedBatch(ids, segments, lengths, where, np.concatenate([row[4] for row in rows]), follows)

    def loss(self, model: LanguageModel, batch: MaskedBatch) -> Loss:
        """The summed loss of predicted tokens, and as many times the mean loss of the segments' question."""
        assert isinstance(model, MaskedModel)
        ids = torch.as_tensor(batch.ids)
        mask = (torch.arange(ids.shape[1]) < torch.as_tensor(batch.lengths)[:, None]).long()
        hidden = model.read(ids, mask, torch.as_tensor(batch.segments))
        row, place = (torch.as_tensor(w, device=hidden.device) for w in batch.where)
        targets = torch.as_tensor(batch.targets, device=hidden.device)
        logits = model.output(model.transform(hidden[row, place])).float()
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        metrics = {"masked_loss": float(total.detach()), "masked_accuracy": float((logits.argmax(1) == targets).sum())}
        if batch.follows is None:
            return Loss(total, metrics)
        answers = torch.as_tensor(batch.follows, device=hidden.device)
        asked = model.next_sentence(hidden).float()
        extra = torch.nn.functional.cross_entropy(asked, answers, reduction="sum")
        right = float((asked.argmax(1) == answers).float().sum())
        metrics |= {"sentence_loss": float(extra.detach()) * batch.asked, "sentence_accuracy": right * batch.asked}
        return Loss(total + extra * batch.asked, metrics)
