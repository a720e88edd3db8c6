"""A back-off n-gram model: a probability for each n-gram that was seen, a back-off weight for each context.

    P(w | h) = the probability of h w, where it is kept; else backoff(h) · P(w | h without its first unit)

Orders are kept as a sorted trie: an n-gram of order n is the number of its first n − 1 units among those of order n − 1
times the vocabulary's size, plus its last unit, one 64-bit number. So any order is looked up for any number of places
by binary search at once, and what may follow a context stands side by side. Arrays are read from disk where they lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.errors import KamertonError
from kamerton.files import whole, write_text
from kamerton.text.ngrams.units import BOS, EOS, SPECIAL, UNK, Units, open_units

FORMAT = 1


@dataclass
class Order:
    """The n-grams of one order.

    Attributes:
        keys: (N,) uint64, rising: index of the context in the order below × vocabulary + last unit.
        probs: (N,) float64 natural logarithms of probabilities.
        backoffs: (N,) float64 natural logarithms of back-off weights of these n-grams as contexts; 0 where nothing
            follows.
    """

    keys: np.ndarray
    probs: np.ndarray
    backoffs: np.ndarray


@dataclass
class Scored:
    """What a model says of a text.

    Attributes:
        log_prob: natural logarithm of the probability of all units that are known; ends of sentences count.
        units: that were scored, ends of sentences among them, unknown ones too.
        unknown: units that are `<unk>`; `unknown_log_prob`: their part.
        impossible: units of probability 0 (without smoothing).
        sentences, bytes: of the text; an end of a line is a byte.
    """

    log_prob: float = 0.0
    units: int = 0
    unknown: int = 0
    unknown_log_prob: float = 0.0
    impossible: int = 0
    sentences: int = 0
    bytes: int = 0

    @property
    def perplexity(self) -> float:
        """Of known units; infinite where one of them was impossible."""
        known = self.units - self.unknown
        return math.inf if self.impossible else math.exp(-self.log_prob / max(known, 1))

    @property
    def perplexity_with_unknown(self) -> float:
        """Of all units, an unknown one counting as `<unk>`; not comparable between vocabularies."""
        whole = self.log_prob + self.unknown_log_prob
        return math.inf if self.impossible else math.exp(-whole / max(self.units, 1))

    @property
    def bits_per_byte(self) -> float | None:
        """None where something is unknown: what it would take to spell it is not in the model."""
        if self.unknown or not self.bytes:
            return None
        return math.inf if self.impossible else -self.log_prob / math.log(2) / self.bytes


class NgramModel:
    """An n-gram model.

    Args:
        units: what it counts.
        orders: order 1 first; order 1 has an entry for every unit, in their order.
        smoothing: how it was estimated.
        notes: what the user should know of that.
    """

    def __init__(self, units: Units, orders: Sequence[Order], smoothing: str, notes: Sequence[str] = ()) -> None:
        self.units, self.orders, self.smoothing, self.notes = units, list(orders), smoothing, list(notes)

    @property
    def order(self) -> int:
        return len(self.orders)

    # -- probabilities ------------------------------------------------------------------------------------------------

    def log_probs(self, sentence: np.ndarray) -> np.ndarray:
        """Natural logarithms of P(unit | what stands before it in its sentence).

        Args:
            sentence: (T,) numbers of whole sentences behind each other, each from `<s>` on.

        Returns:
            (T,) float64; 0 at `<s>`, which is given and not predicted.
        """
        units = np.asarray(sentence, dtype=np.int64)
        starts = np.flatnonzero(units == BOS)
        begin = np.zeros(len(units), dtype=np.int64)
        begin[starts] = starts
        behind = np.arange(len(units)) - np.maximum.accumulate(begin)  # how many units of its sentence stand before
        # index of the n-gram that ends here, for each order; -1 where it is not kept
        index = units.copy()
        out = self.orders[0].probs[units]
        weights = np.zeros(len(units))
        for n, order in enumerate(self.orders[1:], start=2):
            context = np.full(len(units), -1, dtype=np.int64)
            context[1:] = index[:-1]  # the (n−1)-gram that ends one before
            context[behind < n - 1] = -1
            known = np.flatnonzero(context >= 0)
            below = self.orders[n - 2].backoffs
            found = _find(order.keys, context[known].astype(np.uint64) * np.uint64(self.units.size)
                          + units[known].astype(np.uint64))  # fmt: skip
            hit = found >= 0
            # where the longer one is not kept, the context's back-off weight is paid
            weights[known[~hit]] += below[context[known[~hit]]]
            weights[known[hit]] = 0.0
            out[known[hit]] = order.probs[found[hit]]
            index = np.full(len(units), -1, dtype=np.int64)
            index[known[hit]] = found[hit]
        out = out + weights
        out[starts] = 0.0
        return out

    def score(self, batches: Iterator[list[bytes]]) -> Scored:
        """What the model says of lines."""
        out = Scored()
        for batch in batches:
            read = self.units.sentences(batch)
            logs = self.log_probs(read)
            predicted, unknown = read != BOS, read == UNK
            known = predicted & ~unknown
            gone = known & np.isneginf(logs)
            out.log_prob += float(logs[known & ~gone].sum())
            out.unknown_log_prob += float(logs[unknown & ~np.isneginf(logs)].sum())
            out.impossible += int(gone.sum())
            out.units += int(predicted.sum())
            out.unknown += int(unknown.sum())
            out.sentences += len(batch)
            out.bytes += sum(map(len, batch)) + len(batch)
        return out

    def following(self, history: Sequence[int]) -> np.ndarray:
        """(V,) probabilities of what follows; `<s>` never does.

        Args:
            history: the sentence so far, from `<s>` on; only its last `order − 1` units count.
        """
        out = np.exp(self.orders[0].probs)
        out[BOS] = 0.0
        recent = list(history)[-(self.order - 1) :] if self.order > 1 else []
        for length in range(1, len(recent) + 1):
            context = self.index(recent[-length:])
            if context < 0:
                continue  # nothing was seen behind it: the shorter context's word stands
            order, size = self.orders[length], self.units.size
            first, last = np.searchsorted(order.keys, np.array([context * size, (context + 1) * size], np.uint64))
            out = out * np.exp(self.orders[length - 1].backoffs[context])  # of a damaged model infinite, not an error
            units = order.keys[first:last] - np.uint64(context * size)
            if len(units) and int(units.max()) >= size:  # loading does not read all of a large model
                mend = "train it again with kamerton ngram train"
                raise KamertonError(f"the model is damaged: its {length + 1}-grams are not in order", mend=mend)
            out[units.astype(np.int64)] = np.exp(order.probs[first:last])
        return out

    def index(self, gram: Sequence[int]) -> int:
        """Where an n-gram stands in its order; -1 where it is not kept."""
        found = int(gram[0])
        for order, unit in zip(self.orders[1:], gram[1:], strict=False):
            (found,) = _find(order.keys, np.array([found * self.units.size + int(unit)], dtype=np.uint64))
            if found < 0:
                return -1
        return int(found)

    def sample(self, rng: np.random.Generator, *, longest: int = 200, temperature: float = 1.0) -> list[int]:
        """A sentence that is drawn unit by unit, without `<s>` and `</s>`; `<unk>` is never drawn."""
        history = [BOS]
        while len(history) <= longest:
            p = self.following(history)
            p[UNK] = 0.0
            p = p ** (1 / temperature)
            if not p.sum() > 0:
                break
            unit = int(rng.choice(len(p), p=p / p.sum()))
            if unit == EOS:
                break
            history.append(unit)
        return history[1:]

    def grams(self, n: int) -> np.ndarray:
        """(N, n) numbers of the n-grams of an order."""
        out = np.empty((len(self.orders[n - 1].keys), n), dtype=np.int64)
        at = np.arange(len(out))
        for order in range(n, 0, -1):
            keys = self.orders[order - 1].keys[at]
            size = np.uint64(self.units.size)
            out[:, order - 1] = (keys % size if order > 1 else keys).astype(np.int64)
            at = (keys // size).astype(np.int64)
        return out

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write a folder: `ngram.json`, the vocabulary, and the arrays of each order. `ngram.json` is last."""
        folder.mkdir(parents=True, exist_ok=True)
        for n, order in enumerate(self.orders, start=1):
            for name in ("keys", "probs", "backoffs"):
                with whole(folder / f"{n}-{name}.npy") as file:
                    np.save(file, np.ascontiguousarray(getattr(order, name)), allow_pickle=False)
        write_text(folder / "vocabulary.txt", "".join(f"{name}\n" for name in self.units.names))
        about: dict[str, Any] = {
            "format": FORMAT, "kind": self.units.kind, "tokenizer": getattr(self.units, "folder", None),
            "order": self.order, "smoothing": self.smoothing, "notes": self.notes, "vocabulary": self.units.size,
            "ngrams": [len(order.keys) for order in self.orders],
        }  # fmt: skip
        write_text(folder / "ngram.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> NgramModel:
        """Read a folder that `save` wrote; large arrays stay on disk.

        Raises:
            KamertonError: it is no such folder, or damaged.
        """
        try:
            about = json.loads((folder / "ngram.json").read_text(encoding="utf-8"))
            names = (folder / "vocabulary.txt").read_bytes().decode("utf-8").split("\n")[:-1]
            if about["format"] != FORMAT:
                what = f"is of format {about['format']}, this version reads {FORMAT}"
                raise KamertonError(what, where=str(folder), mend="train it again with kamerton ngram train")
            orders = [
                Order(*(_array(folder / f"{n}-{name}.npy", kind)
                        for name, kind in (("keys", np.uint64), ("probs", np.float64), ("backoffs", np.float64))))
                for n in range(1, about["order"] + 1)
            ]  # fmt: skip
            sizes = [len(order.keys) for order in orders]
            if sizes != about["ngrams"] or sizes[0] != len(names) or any(
                not len(o.keys) == len(o.probs) == len(o.backoffs) for o in orders
            ):  # fmt: skip
                raise ValueError("arrays of the wrong length")
            above = [1, *sizes]
            if not sizes or any(
                len(o.keys) and int(o.keys[-1]) >= above[n] * len(names) for n, o in enumerate(orders)
            ):  # fmt: skip
                raise ValueError("an n-gram of units that are not there")
            smoothing, notes, kind = about["smoothing"], about["notes"], about["tokenizer"] or about["kind"]
            if not isinstance(smoothing, str) or not isinstance(notes, list) or not isinstance(kind, str):
                raise TypeError("smoothing, notes or kind")
            if names[: len(SPECIAL)] != list(SPECIAL):
                raise ValueError("a vocabulary without the special units")
        except FileNotFoundError as error:
            what = f"is no n-gram model: {Path(error.filename).name} is not there"
            raise KamertonError(what, where=str(folder), mend="make one with kamerton ngram train") from None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            what = f"is damaged: {' '.join(str(error).split())[:150]}"
            raise KamertonError(what, where=str(folder), mend="train it again with kamerton ngram train") from None
        units = open_units(kind, names=names)
        if units.names != names:
            what = f"its tokenizer {about['tokenizer']} has changed since"
            raise KamertonError(what, where=str(folder), mend="train it again with kamerton ngram train")
        return cls(units, orders, smoothing, notes)


def _array(path: Path, kind: type[np.generic]) -> np.ndarray:
    """A row of numbers on disk.

    Raises:
        ValueError: it is none.
        OSError: there is no such file.
    """
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy reads its header as a piece of Python, and raises what that does
        raise ValueError(f"{path.name}: {error}") from None
    if found.ndim != 1 or found.dtype != kind:
        raise ValueError(f"{path.name} is no row of {kind.__name__}")
    return found


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(M,) where numbers stand among rising keys; -1 for those that are not there."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
