"""Conversation → tokens and loss weights: the only place in Kamerton where a chat template is applied.

Training, evaluation, chat and serving all call the same `Renderer`, so what a model is trained on is what it is asked
later. Its fingerprint is stored with every result and adapter and checked on load.

Rules:

* A prompt is the template with its generation prompt; an answer is its own tokens followed by the template's end token.
* Loss weight is 0 on the prompt and 1 on the answer and on the end token, also where the end token shares its id with
  padding: weights are kept beside the tokens and are never derived from ids.
* A template that refuses a system message gets the system text in front of the first user message.
* A template that would print today's date is given a fixed one, so that results can be repeated.
* A base without a template gets `PLAIN_TEMPLATE`.
* The encoder of an encoder–decoder reads a plain text: the messages, one below another, without names of roles
  (`ENCODER_TEMPLATE`), between the tokens that the tokenizer puts around a text, an end token behind it. The answer and
  its end token are the decoder's.
* What does not fit is cut in the middle of the longest message, and counted (`fit`); an answer that alone is too long
  is cut at its end and then carries no end token, so that the model does not learn to stop there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from kamerton.errors import ModelError
from kamerton.tasks.example import Message, fingerprint
from kamerton.templates import TooCostly, render

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}Assistant:\n{{ message['content'] }}{{ eos_token }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""The template of a base that brings none."""

ENCODER_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""The template of an encoder–decoder that brings none: T5 and its like were trained on texts, not on conversations."""

FIXED_DATE = "01 Jan 2025"
"""What a template that asks for the date is told."""

_MARK = "kamerton-answer"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One training example as tokens.

    Attributes:
        tokens: T token ids, prompt and answer.
        weights: T loss weights, of each token as a target: 0 on the prompt, 1 on the answer and its end token.
        cut: whether something had to be cut to fit.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    cut: bool = False

    @property
    def prompt_length(self) -> int:
        """Tokens before the first one that carries loss."""
        return next((i for i, w in enumerate(self.weights) if w), len(self.weights))

    @property
    def target_count(self) -> int:
        """Tokens that carry loss."""
        return sum(1 for w in self.weights if w)


class Renderer:
    """Turns conversations into tokens for one base.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: a Jinja template that replaces the tokenizer's own; default: its own, else `PLAIN_TEMPLATE`.
        end_ids: further ids at which the model stops (its generation configuration's).
        encoder_decoder: whether prompts are read by an encoder (answers by a decoder, if there is one).

    Raises:
        ModelError: the template cannot be rendered, or there is no token that could end an answer.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template: str | None = None, end_ids: Sequence[int] = (),
        encoder_decoder: bool = False,
    ) -> None:  # fmt: skip
        self.tokenizer, self.encoder_decoder = tokenizer, encoder_decoder
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default", next(iter(own.values()), None))
        self.template: str = chat_template or own or (ENCODER_TEMPLATE if encoder_decoder else PLAIN_TEMPLATE)
        self.plain = not (chat_template or own)
        first = self._ids("a", special=True)[:1]
        self._bos: list[int] = first if first and first[0] == tokenizer.bos_token_id else []
        self._system_allowed = True
        self._system_allowed = self._accepts_system()
        self.end_id = self._find_end()
        ids = [self.end_id, *end_ids, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])]
        self.end_ids: tuple[int, ...] = tuple(sorted(set(ids)))
        self._around = self._affixes()

    # -- conversations ----------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to and including the header of the model's turn."""
        return self._encode(self.text(messages))

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that ends with an answer, what the template writes behind it included."""
        return self._encode(self.text(messages, generation_prompt=False))

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The conversation as the model sees it, special tokens written out."""
        try:
            return render(
                self.template,
                [{"role": m.role, "content": m.content} for m in self._prepare(messages)],
                add_generation_prompt=generation_prompt,
                **{**self.tokenizer.special_tokens_map, "date_string": FIXED_DATE},
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is not valid Jinja (line {error.lineno}: {error})",
                mend="mend it, or give another chat_template in the recipe",
            ) from error
        except TooCostly as error:
            mend = "give another chat_template in the recipe"
            raise ModelError(f"the chat template {error}", mend=mend) from error
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses a conversation of {', '.join(m.role for m in messages)}: {error}",
                mend="give roles in the order system, user, assistant, user, …, or another chat_template in the recipe",
            ) from error

    def answer(self, answer: str, *, end: bool = True) -> list[int]:
        """Token ids of an answer, with the end token."""
        ids = self._ids(answer)
        return [*ids, self.end_id] if end else list(ids)

    def example(self, messages: Sequence[Message], answer: str, *, limit: int | None = None) -> Rendered:
        """A conversation and its answer with loss weights, cut to `limit` tokens by the rules above.

        The two of an encoder–decoder have positions of their own, so the limit is that of each of them.
        """
        target = self.answer(answer)
        cut = False
        most = None if limit is None else limit if self.encoder_decoder else limit // 2
        if most is not None and len(target) > most:
            target, cut = target[:most], True
        kept, cut_prompt = self.fit(messages, limit if self.encoder_decoder or limit is None else limit - len(target))
        prompt = self.prompt(kept)
        return Rendered((*prompt, *target), (0.0,) * len(prompt) + (1.0,) * len(target), cut or cut_prompt)

    def fit(self, messages: Sequence[Message], limit: int | None) -> tuple[tuple[Message, ...], bool]:
        """Cut the longest message in its middle until the prompt has at most `limit` tokens.

        Returns:
            The messages and whether anything was cut.

        Raises:
            ModelError: the template alone is longer than the limit.
        """
        kept = tuple(messages)
        if limit is None:
            return kept, False
        over = len(self.prompt(kept)) - limit
        if over <= 0:
            return kept, False
        encoded = [self._ids(m.content) for m in kept]
        keep = [len(ids) for ids in encoded]
        while over > 0:
            i = max(range(len(kept)), key=lambda j: keep[j])
            if not keep[i]:
                message = f"the chat template alone is longer than {limit} tokens"
                raise ModelError(message, mend="raise the limit or shorten the shots")
            # always from the original tokens and always fewer of them: text that was cut inside a character can come
            # back as more tokens than it had
            keep[i] = max(0, keep[i] - over)
            half = (keep[i] + 1) // 2
            ids = encoded[i]
            text = self.decode(ids[:half]) + " … " + self.decode(ids[len(ids) - keep[i] + half :]) if keep[i] else ""
            kept = (*kept[:i], replace(kept[i], content=text), *kept[i + 1 :])
            over = len(self.prompt(kept)) - limit
        return kept, True

    # -- plain text -------------------------------------------------------------------------------------------------

    def raw(self, text: str) -> list[int]:
        """Token ids of a text outside any conversation, with the token that the base starts texts with, if any."""
        return [*self._bos, *self._ids(text)]

    def split(self, text: str) -> tuple[list[int], list[int]]:
        """A text outside any conversation as a prompt and its continuation.

        A causal model is given the text's first token; an encoder–decoder its first half, in tokens, as a prompt.
        """
        if not self.encoder_decoder:
            tokens = self.raw(text)
            return tokens[:1], tokens[1:]
        tokens = self._ids(text)
        before, behind = self._around
        return [*before, *tokens[: len(tokens) // 2], *behind], list(tokens[len(tokens) // 2 :])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out, spaces untouched."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # -- identity ---------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides which tokens a conversation becomes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else str(sorted(self.tokenizer.get_vocab().items()))
        probe = [Message("system", "Sýstem"), Message("user", "Frage 12 — 你好"), Message("assistant", "ответ"),
                 Message("user", "q")]  # fmt: skip
        return fingerprint(
            {
                "template": self.template,
                "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
                "end": self.end_ids,
                "probe": self.prompt(probe),
            }
        )

    # -- inside -----------------------------------------------------------------------------------------------------

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; `special`: with the tokens that the tokenizer puts around it.

        Raises:
            ModelError: the tokenizer fails. One whose regular expression needs too many steps on a text ends in a panic
                of Rust's, which is no `Exception`.
        """
        try:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            raise ModelError(
                f"the tokenizer fails at a text ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
                mend="use another tokenizer; a regular expression in its tokenizer.json may need too many steps",
            ) from error

    def _encode(self, text: str) -> list[int]:
        ids = self._ids(text)
        if not self.plain:
            return list(ids)
        if self.encoder_decoder:
            before, behind = self._around
            return [*before, *ids, *behind]
        return [*self._bos, *ids]

    def _affixes(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and behind a text; an end token behind it in any case."""
        bare, whole = (self._ids("a", special=add) for add in (False, True))
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        behind = whole[at + len(bare) :]
        return list(whole[:at]), list(behind if self.end_id in behind else [*behind, self.end_id])

    def _prepare(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._system_allowed or not messages or messages[0].role != "system":
            return messages
        if len(messages) > 1 and messages[1].role == "user":
            merged = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
            return [merged, *messages[2:]]
        return [Message("user", messages[0].content), *messages[1:]]

    def _accepts_system(self) -> bool:
        mark = "kamerton-system"
        try:
            return mark in self.text([Message("system", mark), Message("user", "a")])
        except ModelError:
            return False

    def _find_end(self) -> int:
        """The token that the template puts after an answer; the tokenizer's end token where it puts none."""
        turns = [Message("user", "a"), Message("assistant", _MARK)]
        after = self.text(turns, generation_prompt=False).rpartition(_MARK)[2]
        ids = self._ids(after)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in ids:
            if token in special:
                return int(token)
        end = self.tokenizer.eos_token_id
        if end is None:  # BERT's tokenizers call it so
            end = self.tokenizer.sep_token_id if self.encoder_decoder else None
        if end is None:
            raise ModelError(
                "the tokenizer has no end token and its template puts none after an answer",
                mend="set eos_token in the model's tokenizer_config.json",
            )
        return int(end)
