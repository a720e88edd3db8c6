"""What an n-gram model counts: words, characters, bytes, or the tokens of a tokenizer folder; and reading text as them.

A line of text is a sentence: it begins with `<s>`, ends with `</s>`, and no n-gram reaches over its ends. Words are
letters and digits with the apostrophes and hyphens inside them, and single signs of punctuation. Bytes and the tokens
of a byte-level tokenizer lose nothing, so that bits per byte can be given for them; a word or a character that was not
in the training text is `<unk>`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import ClassVar

import numpy as np

from kamerton.errors import ModelError
from kamerton.files import expanded, is_path
from kamerton.text.lines import Seen, lines, no_text

UNK, BOS, EOS = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_WORD_OR_END = re.compile(rf"{_WORD.pattern}|\n")
_SPACED = re.compile(r" ([,.;:!?)\]}…])|(?<=[(\[{]) ")
_SHOWN = {**{code: chr(0x2400 + code) for code in range(32)}, ord(" "): "▁"}
"""How names of units write spaces and control characters, which files of names and ARPA files have between them."""
_MEANT = {ord(shown): chr(code) for code, shown in _SHOWN.items()}
LINES = 20_000
"""Lines that are read into one batch."""


class Units(ABC):
    """Text as numbers below `size`; 0, 1 and 2 are `<unk>`, `<s>` and `</s>`.

    Attributes:
        kind: its name.
        lossless: whether the text can be put together again from what is read, so that bits per byte mean something.
    """

    kind: ClassVar[str]
    lossless: bool = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.size = len(self.names)
        self._number = {name: i for i, name in enumerate(self.names)}

    def number(self, name: str) -> int:
        """The number of a unit; that of `<unk>` for one that is not known."""
        return self._number.get(name, UNK)

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """A line as names of units."""

    def encode(self, text: str) -> list[int]:
        """A line as numbers, without `<s>` and `</s>`."""
        return [self._number.get(name, UNK) for name in self.split(text)]

    def join(self, numbers: Iterable[int]) -> str:
        """Numbers as text."""
        return "".join(self.names[n] for n in numbers)

    def sentences(self, batch: Iterable[bytes]) -> np.ndarray:
        """Lines as one array of numbers: `<s>` … `</s>` `<s>` … `</s>`."""
        flat: list[int] = []
        for line in batch:
            flat.append(BOS)
            flat += self.encode(line.decode("utf-8", errors="replace"))
            flat.append(EOS)
        return np.array(flat, dtype=np.uint32)


class Words(Units):
    """Words, and single signs of punctuation."""

    kind = "words"

    def split(self, text: str) -> list[str]:
        return _WORD.findall(text.translate({0: _SHOWN[0]}) if "\0" in text else text)

    def join(self, numbers: Iterable[int]) -> str:
        """With spaces but before what closes and behind what opens; the text may have had others."""
        return _SPACED.sub(lambda m: m[1] or "", " ".join(self.names[n] for n in numbers))

    def sentences(self, batch: Iterable[bytes]) -> np.ndarray:
        # all lines at once: an end of a line is read as </s>, and <s> is put behind each but the last
        text = b"\n".join(batch).decode("utf-8", errors="replace")
        names = _WORD_OR_END.findall(text.translate({0: _SHOWN[0]}) if "\0" in text else text)
        known = {**self._number, "\n": EOS}.get
        flat = np.fromiter(map(known, names, repeat(UNK)), dtype=np.uint32, count=len(names))
        return np.concatenate([[BOS], np.insert(flat, np.flatnonzero(flat == EOS) + 1, BOS), [EOS]]).astype(np.uint32)


class Characters(Units):
    """Characters; a space is written ▁ and a control character by its picture (␉), so that every unit can be read."""

    kind = "characters"

    def split(self, text: str) -> list[str]:
        return list(text.translate(_SHOWN))

    def join(self, numbers: Iterable[int]) -> str:
        return super().join(numbers).translate(_MEANT)


class Bytes(Units):
    """UTF-8 bytes, written as two hexadecimal digits; nothing is unknown."""

    kind = "bytes"
    lossless = True

    def __init__(self) -> None:
        super().__init__([*SPECIAL, *(f"{b:02x}" for b in range(256))])

    def split(self, text: str) -> list[str]:
        return [f"{b:02x}" for b in text.encode()]

    def join(self, numbers: Iterable[int]) -> str:
        return bytes(n - 3 for n in numbers if n >= 3).decode("utf-8", errors="replace")

    def sentences(self, batch: Iterable[bytes]) -> np.ndarray:
        parts = [np.frombuffer(line, dtype=np.uint8).astype(np.uint32) + 3 for line in batch]
        ends = np.array([EOS], dtype=np.uint32), np.array([BOS], dtype=np.uint32)
        return np.concatenate([x for p in parts for x in (ends[1], p, ends[0])]) if parts else np.zeros(0, np.uint32)


class Tokens(Units):
    """The tokens of a tokenizer folder; its special tokens are not made, and its unknown token is `<unk>`."""

    kind = "tokenizer"

    def __init__(self, folder: str) -> None:
        if is_path(folder) and not expanded(folder).is_dir():
            mend = "check the path, or give words, characters, bytes"
            raise ModelError("no such folder", where=folder, mend=mend)
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds; every one is about what the user named
            what = f"no tokenizer: {str(error).splitlines()[0]}"
            raise ModelError(what, where=folder, mend="name a folder with tokenizer.json") from error
        self.folder = folder
        vocabulary = self._tokenizer.get_vocab()
        self._unknown: int | None = self._tokenizer.unk_token_id
        names = [""] * (max(vocabulary.values()) + 1)
        taken = {"", *SPECIAL}  # two units of one name could not be told apart in an ARPA file
        for name, i in sorted(vocabulary.items(), key=lambda x: x[1]):
            shown = name.translate(_SHOWN)
            names[i] = f"{shown}<{i}>" if shown in taken else shown
            taken.add(names[i])
        super().__init__([*SPECIAL, *(name or f"<{i}>" for i, name in enumerate(names))])
        probe = "Zoë’s  naïve “test”: 你好, 🙂\t#1"
        self.lossless = self._tokenizer.decode(self._tokenizer(probe, add_special_tokens=False)["input_ids"]) == probe

    def split(self, text: str) -> list[str]:
        return [self.names[i] for i in self.encode(text)]

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [UNK if i == self._unknown else i + 3 for i in ids]

    def join(self, numbers: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([n - 3 for n in numbers if n >= 3])
        return text


def seen_notes(seen: Seen, units: Units) -> list[str]:
    """What was wrong in a text that was read as units, in words."""
    return seen.notes(read_as="their bytes are kept") if isinstance(units, Bytes) else seen.notes()


KINDS: dict[str, type[Words] | type[Characters]] = {"words": Words, "characters": Characters}


def open_units(kind: str, files: Sequence[Path] = (), *, names: Sequence[str] | None = None, least: int = 1) -> Units:
    """Units by name.

    Args:
        kind: `words`, `characters`, `bytes`, or a tokenizer's folder.
        files: the text whose words or characters are the vocabulary.
        names: the vocabulary, where it is known.
        least: words or characters that are seen less often are `<unk>`.

    Raises:
        KamertonError: no text in the files, or no such tokenizer.
    """
    if kind == "bytes":
        return Bytes()
    if kind not in KINDS:
        return Tokens(kind)
    make = KINDS[kind]
    if names is not None:
        return make(names)
    from collections import Counter

    seen: Counter[str] = Counter()
    blank = make(SPECIAL)
    for line in lines(files):
        seen.update(blank.split(line.decode("utf-8", errors="replace")))
    for name in SPECIAL:  # text that writes them means them as text, and they cannot be both
        seen.pop(name, None)
    kept = sorted(name for name, count in seen.items() if count >= least)
    if not kept:
        raise no_text(files, kind)
    return make([*SPECIAL, *kept])
