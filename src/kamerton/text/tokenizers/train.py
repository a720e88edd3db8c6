"""Train a tokenizer and save it as a folder that transformers loads.

| kind | units before merging | unknown text |
| --- | --- | --- |
| byte-bpe | bytes, split as GPT-2 splits (Radford et al. 2019) | none: every byte has a token |
| bpe | characters, spaces as ▁ (Sennrich et al. 2016) | `<unk>` |
| wordpiece | characters of words, `##` inside them (Schuster & Nakajima 2012; BERT) | `[UNK]` |
| unigram | pieces of a unigram model, spaces as ▁, no split but there (Kudo 2018; SentencePiece) | its bytes |
| words | whole words and signs | `<unk>` |

Unigram splits text at spaces only, so languages that write none are cut by the model alone; what it has no piece for is
written as bytes, so it loses nothing but the sign ▁ itself, which is read as a space.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from kamerton.errors import KamertonError
from kamerton.files import moved_into
from kamerton.text.lines import Seen, lines, no_text

BATCH = 1000
SPELLED = "<0x123456789ABCDEF>"
"""Letters that unigram always has, for the names of its bytes are written in them."""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer.

    Attributes:
        special: its special tokens by role, in the order of their numbers.
        make: an untrained one.
    """

    special: dict[str, str]
    make: Callable[[], Any]


def _byte_bpe() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _spaced(made: Any) -> Any:
    """SentencePiece's treatment of spaces: each is ▁, one more stands before the text, and words begin with theirs.

    The one before is written by a normalizer: Metaspace alone leaves it out where the text begins with a space, which
    then would not come back.
    """
    from tokenizers import normalizers, pre_tokenizers

    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return made


def _bpe() -> Any:
    from tokenizers import Tokenizer, decoders, models

    made = _spaced(Tokenizer(models.BPE(unk_token="<unk>")))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models

    made = _spaced(Tokenizer(models.Unigram()))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


_PLAIN = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
KINDS: dict[str, Kind] = {
    "byte-bpe": Kind({"eos": "<|endoftext|>", "pad": "<|pad|>"}, _byte_bpe),
    "bpe": Kind({"unk": "<unk>", **_PLAIN}, _bpe),
    "wordpiece": Kind({"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}, _wordpiece),
    "unigram": Kind({"unk": "<unk>", **_PLAIN}, _unigram),
    "words": Kind({"unk": "<unk>", **_PLAIN}, _words),
}


def train(
    files: Sequence[Path], kind: str, vocab_size: int, output: Path, *, split_digits: bool = False,
    special: Sequence[str] = (), chat_template: str | None = None, progress: Callable[[int], None] | None = None,
    seen: Seen | None = None,
) -> Any:  # fmt: skip
    """Train a tokenizer on text and save it.

    Args:
        files: text, a document or sentence a line, read as a stream; see `kamerton.text.lines`.
        kind: of KINDS.
        vocab_size: tokens in all, special ones included.
        output: the folder to write: `tokenizer.json`, `tokenizer_config.json`.
        split_digits: every digit is a token of its own.
        special: further special tokens.
        chat_template: `chatml`, or a template (Jinja); with `chatml` an answer ends with `<|im_end|>`.
        progress: told the bytes that were read.
        seen: told of lines that were cut and of characters that are not UTF-8.

    Returns:
        transformers' `PreTrainedTokenizerFast`.

    Raises:
        KamertonError: no text, or a vocabulary smaller than the alphabet with the special tokens.
    """
    of = KINDS[kind]
    roles, extra = dict(of.special), list(special)
    if chat_template == "chatml":
        chat_template, roles["eos"] = CHATML, "<|im_end|>"
        extra += ["<|im_start|>", *([of.special["eos"]] if "eos" in of.special else [])]
    tokens = list(dict.fromkeys([*roles.values(), *extra]))
    _check(files, kind, vocab_size, len(tokens))
    made = of.make()
    if split_digits:
        from tokenizers import pre_tokenizers

        digits = pre_tokenizers.Digits(individual_digits=True)
        # behind what writes ▁, or each digit would get one; before what turns letters into bytes
        parts = [digits, made.pre_tokenizer] if kind == "byte-bpe" else [made.pre_tokenizer, digits]
        made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    inner: list[str] = []
    if kind == "wordpiece":
        # the library numbers letters inside words as it meets them, in an order that changes from run to run, and the
        # numbers decide between pairs that are equally frequent: so they are found first, and given in order
        made.train_from_iterator(_texts(files), _trainer(kind, 1, tokens))
        inner = sorted(piece for piece in made.get_vocab() if piece.startswith("##") and piece not in tokens)
    made.train_from_iterator(_texts(files, progress, seen), _trainer(kind, vocab_size, [*tokens, *inner]))
    if (least := made.get_vocab_size()) > vocab_size:  # nothing was merged: these are the letters as they are cut
        raise _too_few(kind, vocab_size, least - len(tokens), len(tokens))
    if kind == "unigram":
        made = _with_bytes(made, len(tokens))
    if inner:
        made = _ordinary(made, inner)
    if kind == "wordpiece":
        from tokenizers import processors

        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )  # fmt: skip
    return _saved(made, output, roles, extra, chat_template)


def _check(files: Sequence[Path], kind: str, vocab_size: int, special: int) -> None:
    """Refuse what cannot be before it takes time: no text, or fewer tokens than there are letters."""
    seen: set[str] = set()
    some = False
    for line in lines(files):
        some = True
        if kind in ("byte-bpe", "words"):
            break  # the alphabet is known, or is not needed
        seen.update(line.decode("utf-8", "replace"))
    if not some:
        raise no_text(files)
    alphabet = {
        "byte-bpe": 256,
        "words": 1,
        # all letters of the text are pieces, all spaces but " " among them; the library wants one more than those
        "unigram": 256 + len(seen.union(SPELLED, "▁") - {" "}) + 1,
    }.get(kind, sum(not c.isspace() for c in seen))
    if vocab_size < special + alphabet:
        raise _too_few(kind, vocab_size, alphabet, special)


def _too_few(kind: str, vocab_size: int, alphabet: int, special: int) -> KamertonError:
    what = f"{vocab_size} tokens are fewer than the {alphabet} letters and {special} special tokens"
    # whose letters are the 256 bytes
    other = ", or --kind byte-bpe" if kind != "byte-bpe" and vocab_size >= 256 + special else ""
    return KamertonError(what, where="--vocab-size", mend=f"give at least {alphabet + special}{other}")


def _texts(
    files: Sequence[Path], progress: Callable[[int], None] | None = None, seen: Seen | None = None
) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for line in lines(files, seen):
        batch.append(line.decode("utf-8", "replace"))
        size += len(line) + 1
        if len(batch) == BATCH:
            yield batch
            if progress is not None:
                progress(size)
            batch, size = [], 0
    if batch:
        yield batch
        if progress is not None:
            progress(size)


def _trainer(kind: str, size: int, tokens: list[str]) -> Any:
    from tokenizers import pre_tokenizers, trainers

    common: dict[str, Any] = {"vocab_size": size, "special_tokens": tokens, "show_progress": False}
    if kind == "byte-bpe":
        return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    if kind == "bpe":
        return trainers.BpeTrainer(**common)
    if kind == "wordpiece":
        return trainers.WordPieceTrainer(**common)
    if kind == "unigram":
        return trainers.UnigramTrainer(
            unk_token="<unk>", initial_alphabet=list(SPELLED), **{**common, "vocab_size": size - 256}
        )
    return trainers.WordLevelTrainer(**common)


def _with_bytes(made: Any, special: int) -> Any:
    """The unigram model with a token for each byte, which stand for what no piece holds."""
    from tokenizers import Tokenizer

    about = json.loads(made.to_str())
    pieces = [(piece, score) for piece, score in about["model"]["vocab"]]
    pieces[special:] = _in_order(pieces[special:])
    # text that reads <0x41> is six letters and no byte: its letters together are likelier than the byte's token
    lowest = (len("<0x41>") + 1) * min(score for _, score in pieces)
    pieces += [(f"<0x{byte:02X}>", lowest) for byte in range(256)]
    about["model"]["vocab"], about["model"]["byte_fallback"] = pieces, True
    return Tokenizer.from_str(json.dumps(about))


def _in_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces by falling score, where the library has an order that changes from run to run.

    Its sums differ in their last digits. And letters that the model has no need of get the lowest score and each 0.0001
    more than the one before, in any order.
    """
    lowest = min(score for _, score in pieces)
    spare: dict[int, list[str]] = {}
    for piece, score in pieces:
        step = round((score - lowest) * 1e4)
        if len(piece) == 1 and abs((score - lowest) * 1e4 - step) < 1e-6:
            spare.setdefault(step, []).append(piece)
    steps = [step for step in takewhile(spare.__contains__, count()) for _ in spare[step]]
    letters = sorted(piece for step in set(steps) for piece in spare[step])
    scores = dict(pieces) | {piece: lowest + step * 1e-4 for step, piece in zip(steps, letters, strict=True)}
    return sorted(((piece, round(score, 6)) for piece, score in scores.items()), key=lambda x: (-x[1], x[0]))


def _ordinary(made: Any, pieces: list[str]) -> Any:
    """A tokenizer whose special tokens leave some out, which stay in the vocabulary."""
    from tokenizers import Tokenizer

    about = json.loads(made.to_str())
    about["added_tokens"] = [token for token in about["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(about))


def _check_template(wrapped: Any) -> None:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        wrapped.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    except TemplateSyntaxError as error:
        what = f"is no template: {str(error.message).splitlines()[0]}"
        where = f"--chat-template, line {error.lineno}"
        raise KamertonError(what, where=where, mend="mend it, or give chatml") from None
    except TemplateError:
        pass  # it is one, and refuses conversations like this


def _saved(made: Any, output: Path, roles: dict[str, str], extra: list[str], template: str | None) -> Any:
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=extra, clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in roles.items()},
    )  # fmt: skip
    if template is not None:
        wrapped.chat_template = template
        _check_template(wrapped)
    with moved_into(output, last="tokenizer_config.json") as partial:
        wrapped.save_pretrained(partial)
    return wrapped
