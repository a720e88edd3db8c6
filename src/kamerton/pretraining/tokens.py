"""A corpus as one stream of tokens on disk, and the part of it that is held out.

Texts are read one file at a time and their tokens are written as they come, so a corpus may be larger than memory. It
is noted whether the held-out text can be had back from its tokens: only then bits per byte mean something. What is
written is used again where texts and tokenizer are the same. Held out are whole documents, picked by their number,
the same for every seed; of a single document its end, from a line's start on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kamerton.errors import RecipeError, TaskError
from kamerton.files import checksum, expanded, is_path, refusals, write_text
from kamerton.objectives.packed_contexts import Stream
from kamerton.objectives.texts import iter_texts, skipped_note, text_files
from kamerton.pretraining.pieces import batches, can_be_cut
from kamerton.tasks.halves import halves_note, replace_halves
from kamerton.text.lines import PACKED

Documents = Literal["file", "line", "paragraph"]
FORMAT = 3
"""Of what is written beside the streams; what an older version wrote is written again."""
NAMES = ("train", "held_out")

Watch = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Corpus:
    """Streams to learn from and to validate on.

    Attributes:
        train, held_out: the streams; no `held_out` where nothing was held out.
        documents: how many documents each has.
        notes: what was left out or changed, in words.
        digest: of the streams' tokens.
        lossy: why the held-out text's code length is not that of its bytes, in words; None where it is.
    """

    train: Stream
    held_out: Stream | None
    documents: tuple[int, int]
    notes: list[str]
    digest: str
    lossy: str | None = None


def cut_documents(texts: Iterable[str], kind: Documents) -> Iterator[str]:
    """Texts as documents: each a text, a line of it, or a paragraph (between empty lines); empty ones are left out."""
    for text in texts:
        parts = [text] if kind == "file" else text.split("\n") if kind == "line" else re.split(r"\n[ \t]*\n", text)
        yield from (part for part in parts if part.strip())


def hold_out_end(text: str, share: float) -> tuple[str, str]:
    """A text and its end, cut before the line in which the share (of characters) begins."""
    at = len(text) - round(len(text) * share)
    line = text.rfind("\n", 0, at) + 1
    return text[: line or at], text[line or at :]


def drawn(number: int, share: float) -> bool:
    """Whether the one of a number is in a share: by a hash, so that it is whatever else there is."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_documents(documents: Iterator[str], share: float) -> Iterator[tuple[str, bool]]:
    """Documents, each with whether it is held out."""
    first = next(documents, None)
    second = next(documents, None)
    if first is None:
        return
    if second is None:
        train, held_out = hold_out_end(first, share)
        yield from ((part, held) for part, held in ((train, False), (held_out, True)) if part)
        return
    first_held = False
    for number, text in enumerate(itertools.chain((first, second), documents)):
        held = drawn(number, share)
        if number == 1:  # so that of two documents one is learned from and one is there to be judged by
            held = not first_held
        elif number == 0:
            first_held = held
        yield text, held


class _Writer:
    """One stream as it is written."""

    def __init__(self, path: Path, end: int, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._partial = path, path.with_name(f".partial-{os.getpid()}-{path.name}")
        self.dtype = np.uint16 if size <= 2**16 else np.uint32
        self._file = self._partial.open("wb")
        self.tokens = self.bytes = self.documents = self.unknown = self.altered = 0
        self._back = True
        self.digest = hashlib.sha256()
        self._end = np.array([end], dtype=self.dtype)
        self._put(self._end)

    def _put(self, ids: np.ndarray) -> None:
        with refusals(self.path):
            self._file.write(content := ids.tobytes())
        self.digest.update(content)
        self.tokens += len(ids)

    def add(self, ids: Iterable[int], size: int, *, last: bool, unknown: int | None = None) -> None:
        """A piece of a document, of so many bytes.

        Args:
            last: the document ends with it.
            unknown: tokens in it that stand for unknown text; None where it comes back from them.
        """
        self._put(np.asarray(ids, dtype=self.dtype))
        self.bytes += size
        if unknown is not None:
            self._back = False
            self.unknown += unknown
        if last:
            self._put(self._end)
            self.documents += 1
            self.altered += not self._back
            self._back = True

    def close(self) -> None:
        with refusals(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self.path)

    def drop(self) -> None:
        """Remove what is not whole."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


def read_corpus(
    tokenizer: Any, end: int, folder: Path, train: Path, held_out: Path | float | None, documents: Documents,
    watch: Watch | None = None,
) -> Corpus:  # fmt: skip
    """The texts of a recipe as streams, from `folder` where they were written there before.

    Args:
        tokenizer: a transformers tokenizer; texts are read without its special tokens.
        end: the id that stands between documents.
        folder: the streams are written here.
        train: a file or folder of texts.
        held_out: another one, or the share of `train` that is held out, or None.
        documents: what a document is.
        watch: told about progress.

    Raises:
        KamertonError: no texts, or texts that cannot be read.
    """
    files = text_files(train) + (text_files(held_out) if isinstance(held_out, Path) else [])
    key = _key(tokenizer, end, files, held_out, documents)
    about = folder / "about.json"
    read = _written(about, key)
    folders = dict.fromkeys(path for path in (train, held_out) if isinstance(path, Path) and path.is_dir())
    notes = [note for path in folders for note in skipped_note(path)]
    if read and (wrong := next((n for n in NAMES if n in read and not _as_written(folder, n, read[n])), None)):
        read = {}
        notes.append(f"{folder / wrong}.bin was damaged (its checksum did not match) and was written again")
    if not read:
        read = {"key": key, **_write(tokenizer, end, folder, train, held_out, documents, watch or (lambda *_: None))}
        write_text(about, json.dumps(read, ensure_ascii=False, indent=1))

    def stream(name: str) -> Stream:
        one = read[name]
        return Stream(np.memmap(folder / f"{name}.bin", dtype=one["dtype"], mode="r"), end, one["bytes"])

    has = "held_out" in read
    return Corpus(
        stream("train"), stream("held_out") if has else None,
        (read["train"]["documents"], read["held_out"]["documents"] if has else 0), [*notes, *read["notes"]],
        "".join(read[name]["sha256"] for name in NAMES if name in read), _lossy(read["held_out"]) if has else None,
    )  # fmt: skip


def _lossy(held: Mapping[str, Any]) -> str | None:
    """Why nothing can be said of a held-out text's bytes."""
    if not held["altered"]:
        return None
    if held["unknown"]:
        share = held["unknown"] / held["tokens"]
        what = f"{share:.1%} of the held-out tokens stand for text that the tokenizer does not know"
    else:
        what = f"{held['altered']:,} of {held['documents']:,} held-out documents are not what their tokens give back"
    return f"bits per byte are not given: {what}; a byte-level tokenizer (byte-bpe, or bytes) loses nothing"


def _written(about: Path, key: str) -> dict[str, Any]:
    """What `about.json` says of streams that are what is asked for; {} where there are none, or it cannot be read."""
    try:
        read: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        return read if read["key"] == key and read["train"]["sha256"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _as_written(folder: Path, name: str, one: dict[str, Any]) -> bool:
    """Whether a stream is what was written, and not another run's that was stopped before it said so."""
    try:
        return checksum(folder / f"{name}.bin") == one["sha256"]
    except OSError:
        return False


def _write(
    tokenizer: Any, end: int, folder: Path, train: Path, held_out: Path | float | None, kind: Documents, watch: Watch
) -> dict[str, Any]:
    files = text_files(train)  # how much there is to read is not known where some of it is packed
    size = None if any(file.suffix in PACKED for file in files) else sum(file.stat().st_size for file in files)
    writers = {"train": _Writer(folder / "train.bin", end, len(tokenizer))}
    if held_out is not None:
        writers["held_out"] = _Writer(folder / "held_out.bin", end, len(tokenizer))
    share = held_out if isinstance(held_out, float) else 0.0
    documents = cut_documents(iter_texts(train), kind)
    marked = split_documents(documents, share) if share else ((text, False) for text in documents)
    if isinstance(held_out, Path):
        marked = itertools.chain(marked, ((text, True) for text in cut_documents(iter_texts(held_out), kind)))
    try:
        return _filled(writers, marked, tokenizer, train, size, watch)
    finally:
        for writer in writers.values():
            writer.drop()  # after close() nothing is left to drop


def _filled(
    writers: Mapping[str, _Writer], marked: Iterator[tuple[str, bool]], tokenizer: Any, train: Path,
    size: int | None, watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    halves = 0
    for batch in batches(marked, can_be_cut(tokenizer)):
        texts, found = replace_halves([piece.text for piece in batch])
        halves += found
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for piece, text, own in zip(batch, texts, ids, strict=True):
            unknown = _unknown(tokenizer, text, own) if piece.held else None
            writers["held_out" if piece.held else "train"].add(
                own, len(text.encode()), last=piece.last, unknown=unknown
            )
        done = writers["train"].bytes
        share = min(done / max(size, 1), 1.0) if size is not None else 0.0
        watch("reading", share, f"{writers['train'].documents:,} documents, {done:,} bytes")
    out: dict[str, Any] = {"notes": [halves_note(halves, str(train))] if halves else []}
    for name, writer in writers.items():
        writer.close()
        if not writer.documents:
            raise TaskError(
                "no text is left " + ("to learn from" if name == "train" else "to hold out"), where=train,
                mend="give more texts, or another held_out",
            )  # fmt: skip
        out[name] = {
            "tokens": writer.tokens, "bytes": writer.bytes, "documents": writer.documents, "unknown": writer.unknown,
            "altered": writer.altered, "dtype": np.dtype(writer.dtype).name, "sha256": writer.digest.hexdigest(),
        }  # fmt: skip
    return out


def _unknown(tokenizer: Any, text: str, ids: list[int]) -> int | None:
    """How many tokens stand for unknown text; None where the text comes back letter by letter."""
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text:
        return None
    return 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)


def _key(tokenizer: Any, end: int, files: list[Path], held_out: Path | float | None, kind: Documents) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(json.dumps([FORMAT, vocabulary, end, str(held_out), kind]).encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_tokenizer(name: str | Path) -> Any:
    """A tokenizer from a folder or hub id, or the one whose tokens are bytes (`bytes`), with an end token.

    Raises:
        RecipeError: it cannot be read, or has no end token.
    """
    if str(name) == "bytes":
        return byte_tokenizer()
    if is_path(str(name)) and not expanded(name).is_dir():
        raise RecipeError(
            "no such folder", where=f"tokenizer: {name}", mend="check the path, or give a hub id, or bytes"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # transformers raises many kinds; every one is about what the user named
        reason = " ".join(str(error).split())[:160]
        mend = "name a folder that kamerton tokenizer or transformers wrote, a hub id, or bytes"
        raise RecipeError(f"the tokenizer cannot be read ({reason})", where=f"tokenizer: {name}", mend=mend) from error
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        mend = "set eos_token in its tokenizer_config.json"
        raise RecipeError("the tokenizer has no end token", where=f"tokenizer: {name}", mend=mend)
    return tokenizer


def end_of(tokenizer: Any) -> int:
    """The id that stands between documents: the end token, or BERT's separator."""
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id)


def byte_tokenizer() -> Any:
    """256 bytes and the special tokens that the objectives know; no text is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|end|>", "<|pad|>", "<|mask|>", "<|start|>", "<|separator|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[0], pad_token=special[1], mask_token=special[2],
        cls_token=special[3], sep_token=special[4],
    )  # fmt: skip
