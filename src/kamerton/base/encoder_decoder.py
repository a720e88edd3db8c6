"""An encoder–decoder model (T5, FLAN-T5, mT5, BART, …) as the rest of Kamerton sees it.

The encoder reads a prompt as a whole, in both directions, so prompts share no prefix: each distinct one is read once.
The decoder writes the answer, starting from the model's own start token, and looks at what the encoder said. Rows of
different lengths are padded; attention leaves the padding out. Soft tokens stand before the encoder's input, as in
Lester et al. 2021. Trained keys and values stand before what the decoder writes, in the self-attention of each of its
layers, as if it had written other tokens before: they take positions of its own, as in transformers' cache.

What it leaves out: trained keys and values in the encoder and in the attention over what it said, and models that read
anything but text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kamerton.base.attention import LayerKeys
from kamerton.base.encoder import EncoderModel, is_encoder
from kamerton.base.model import CausalModel, LanguageModel
from kamerton.base.passes import Front, Targets
from kamerton.base.recurrent import RecurrentForCausalLM, State
from kamerton.base.recurrent_attention import RecurrentAttentionForSeq2SeqLM
from kamerton.base.recurrent_model import RecurrentModel
from kamerton.base.work import encoder_decoder_parts
from kamerton.errors import ModelError


@dataclass(frozen=True)
class Memory:
    """What the encoder said about prompts.

    Attributes:
        hidden: (B, L, H) final hidden states, soft tokens first, padding last.
        mask: (B, L) 1 where there is a token, 0 on padding.
        lengths: (B,) tokens of each prompt, soft tokens included, on the CPU.
    """

    hidden: Tensor
    mask: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> Memory:
        """The memory of some rows (n,), in that order, perhaps more than once; padding that none needs is cut off."""
        lengths = self.lengths[rows.cpu()]
        longest = int(lengths.max())
        return Memory(self.hidden[rows, :longest], self.mask[rows, :longest], lengths)

    def rows(self) -> list[Tensor]:
        """(n, H) for each prompt, without padding."""
        return [hidden[:n] for hidden, n in zip(self.hidden, self.lengths.tolist(), strict=True)]

    @staticmethod
    def of(rows: Sequence[Tensor]) -> Memory:
        """The inverse of `rows`."""
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return Memory(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask.to(rows[0].device), lengths)


class DecoderCache:
    """Keys and values of the tokens that a decoder has read, and of what the encoder said.

    A thin hull around transformers' own cache, so that rows can be chosen and repeated.

    Args:
        keys: per decoder layer keys and values (H, n, D) that stand before every row's tokens; None for nothing.
        rows: how many rows there will be; without keys it need not be said.
    """

    def __init__(self, keys: LayerKeys | None = None, rows: int = 1) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self.own = EncoderDecoderCache(DynamicCache(), DynamicCache())
        for i, (k, v) in enumerate(keys or ()):
            self.own.self_attention_cache.update(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), i)

    @property
    def length(self) -> int:
        """Positions of each row that are in it, trained keys included."""
        return int(self.own.get_seq_length()) if len(self.own.self_attention_cache) else 0

    @property
    def begun(self) -> bool:
        """Whether keys and values of what the encoder said are in it."""
        return len(self.own.cross_attention_cache) > 0

    def layers(self) -> LayerKeys:
        """Per decoder layer keys and values (H, n, D) of the first row's own positions."""
        return [(layer.keys[0], layer.values[0]) for layer in self.own.self_attention_cache.layers]

    def select(self, rows: Tensor, longest: int) -> DecoderCache:
        """A cache of some rows (n,), in that order, perhaps more than once; `longest` encoder states are kept."""
        from transformers import DynamicCache, EncoderDecoderCache

        out = DecoderCache.__new__(DecoderCache)
        parts = []
        for cache, states in ((self.own.self_attention_cache, None), (self.own.cross_attention_cache, longest)):
            part = DynamicCache()
            for i, layer in enumerate(cache.layers):
                part.update(layer.keys[rows, :, :states], layer.values[rows, :, :states], i)
            parts.append(part)
        out.own = EncoderDecoderCache(*parts)
        return out


class EncoderDecoderModel(LanguageModel):
    """A transformers encoder–decoder (`…ForConditionalGeneration`) behind padded batches and a chunked output layer.

    Attributes:
        start: the tokens that the decoder starts every answer from: the model's start token, and the first token that
            its generation configuration forces, if it does.
    """

    encoder_decoder = True
    task_type = "SEQ_2_SEQ_LM"
    recurrent: ClassVar[bool] = False

    def __init__(
        self,
        hf: Any,
        front: Callable[[], Front] | None = None,
        *,
        inferring: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        super().__init__(hf, front, inferring=inferring)
        own = hf.generation_config
        first = getattr(own, "decoder_start_token_id", None)
        if first is None:
            first = getattr(hf.config, "decoder_start_token_id", None)
        if first is None:
            raise ModelError(
                f"{type(hf).__name__} does not say which token its decoder starts from",
                mend="set decoder_start_token_id in the model's config.json",
            )
        forced = getattr(own, "forced_bos_token_id", None)
        self.start: tuple[int, ...] = (first, *([forced] if forced is not None else []))
        config = hf.config
        tied = config.model_type in ("umt5", "switch_transformers") and config.tie_word_embeddings
        self._scaled = getattr(config, "scale_decoder_outputs", tied)  # T5 before version 1.1 and its descendants

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return max(len(m) for m in self.hf.get_decoder().children() if isinstance(m, nn.ModuleList))

    def prompt_limit(self, answer: int, front: int | None = None) -> int | None:  # noqa: ARG002 - it has its own positions
        return self.example_limit(len(self.front()) if front is None else front)

    def answer_limit(self, prompt: int) -> int | None:
        if self.max_length is None:
            return None
        front = self.front()
        over = front.soft + prompt - self.max_length
        return -over if over > 0 else self.max_length - (len(front) - front.soft) - len(self.start) + 1

    def example_limit(self, front: int) -> int | None:
        return None if self.max_length is None else self.max_length - front - len(self.start) + 1

    # -- passes -----------------------------------------------------------------------------------------------------

    def encode(self, prompts: Sequence[Sequence[int]], front: Front | None = None) -> Memory:
        """Read prompts, each at least one token, before each the soft tokens of the front (default: its own)."""
        front = self.front() if front is None else front
        soft, n_soft = front.embeddings, front.soft
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        lengths = torch.tensor([n_soft + len(prompt) for prompt in prompts])
        mask = (torch.arange(n_soft + longest) < lengths[:, None]).long().to(self.device)
        embeds = self.hf.get_input_embeddings()(ids.to(self.device))
        if soft is not None:
            embeds = torch.cat([soft.to(embeds.dtype).expand(len(prompts), -1, -1), embeds], dim=1)
        encoder = self.hf.get_encoder()
        # PEGASUS and Marian scale embeddings outside their embedding layer, and only those that they look up themselves
        embeds = embeds * getattr(encoder, "embed_scale", 1.0)
        with self._prepared():
            hidden = encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        self.work.add_encoder(tokens=mask.numel(), pairs=int((lengths**2).sum()), grad=hidden.requires_grad)
        return Memory(hidden, mask, lengths)

    def decode(
        self, tokens: Tensor, memory: Memory, cache: DecoderCache | None = None, front: Front | None = None
    ) -> Tensor:
        """Read (B, T) tokens of answers, those in the cache before them → (B, T, H) final hidden states.

        A row that is shorter is padded behind with any token, and what stands there in the result means nothing.
        A cache that is given is filled; without one the tokens stand behind the keys of the front (default: its own).
        """
        kept, b, t = cache is not None, *tokens.shape
        if cache is None:
            cache = self.fresh(b, front)
        past, begun = cache.length, cache.begun
        with self._prepared():
            hidden = self.hf.get_decoder()(
                input_ids=tokens.to(self.device),
                encoder_hidden_states=memory.hidden,
                encoder_attention_mask=memory.mask,
                past_key_values=cache.own if kept or past else None,
                use_cache=kept,
            ).last_hidden_state
        pairs = b * (t * past + t * (t + 1) // 2) + t * int(memory.lengths.sum())
        self.work.add(tokens=b * t, pairs=pairs, grad=hidden.requires_grad)
        if not begun:
            # beside trained keys (`past`) no weight is trained: there is no gradient down to what the encoder said
            down = memory.hidden.requires_grad or (hidden.requires_grad and not past)
            self.work.add_encoder(memory=memory.mask.numel(), grad=down)
        return hidden

    def fresh(self, rows: int, front: Front | None = None) -> DecoderCache:
        """A cache in which nothing has been read yet: the front's keys and values (default: its own) alone."""
        return DecoderCache((self.front() if front is None else front).keys, rows)

    def begin(self, memory: Memory, cache: DecoderCache | None = None) -> Tensor:
        """Read the start tokens → (B, H), from which an answer's first token is predicted."""
        return self.decode(torch.tensor([self.start]).expand(len(memory.lengths), -1), memory, cache)[:, -1]

    @torch.no_grad()
    def keys_of(self, text: Sequence[int]) -> LayerKeys:
        """The decoder's, where it writes the text while the encoder reads it: those of its start tokens come first, and
        as many tokens are left out at the end.
        """
        cache = DecoderCache()
        self.decode(torch.tensor([[*self.start, *text][: len(text)]]), self.encode([text], Front()), cache)
        return cache.layers()

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        front = self.front()
        return [states[front.soft :] for states in self.encode(rows, front).rows()]

    def next_hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self.begin(self.encode(prompts))

    def output(self, hidden: Tensor) -> Tensor:
        if self._scaled:
            hidden = hidden * self.hf.config.d_model**-0.5
        logits = super().output(hidden)
        bias = getattr(self.hf, "final_logits_bias", None)  # BART and its descendants
        return logits if bias is None else logits + bias

    def target_log_probs(self, batch: Targets) -> Tensor:
        picked = self.target_hidden(batch)
        return self.log_probs(picked, torch.as_tensor(batch.targets, device=picked.device))

    def target_hidden(self, batch: Targets) -> Tensor:
        """(N, H) hidden states from which a batch's targets are predicted, with gradient."""
        split = list(zip(batch.rows, batch.prompts, strict=True))
        front = self.front()
        memory = self.encode([(*batch.prefix, *row[:n]) for row, n in split], front)
        read = [(*self.start, *row[n:-1]) for row, n in split]
        tokens = torch.zeros(len(read), max(map(len, read)), dtype=torch.long)
        for line, ids in zip(tokens, read, strict=True):
            line[: len(ids)] = torch.as_tensor(ids)
        hidden = self.decode(tokens, memory, front=front)
        # the place before a target in the packed rows → its row, and its place in the decoder's input
        positions = torch.as_tensor(batch.positions)
        ends = torch.tensor([len(row) for row in batch.rows]).cumsum(0)
        row = torch.searchsorted(ends, positions, right=True)
        begins = ends - torch.tensor([len(r) - n for r, n in split])  # where each row's answer begins
        place = positions - begins[row] + len(self.start)
        if bool((place < len(self.start) - 1).any()):
            raise ValueError("a target inside a prompt: an encoder–decoder model predicts only answers")
        return hidden[row.to(hidden.device), place.to(hidden.device)]


class StateCache(DecoderCache):
    """What the recurrent decoder carries, in place of keys and values.

    Args:
        parts: (n, B, H) tensors of its state; None where nothing has been read.
        read: tokens that were read.
    """

    def __init__(self, parts: State | None = None, read: int = 0) -> None:
        self.parts, self.read = parts, read

    @property
    def length(self) -> int:
        return self.read

    @property
    def begun(self) -> bool:
        return self.parts is not None

    def layers(self) -> LayerKeys:
        raise ModelError("a recurrent model has no keys and values", mend="use full, or another base")

    def select(self, rows: Tensor, longest: int) -> StateCache:  # noqa: ARG002 - nothing of the encoder's is in it
        chosen = None if self.parts is None else tuple(part.index_select(1, rows) for part in self.parts)
        return StateCache(chosen, self.read)


class RecurrentEncoderDecoder(EncoderDecoderModel):
    """A `RecurrentAttentionForSeq2SeqLM`; see `EncoderDecoderModel` for what its members mean."""

    recurrent = True

    @property
    def max_length(self) -> int | None:
        return None  # the state carries any length

    def decode(
        self, tokens: Tensor, memory: Memory, cache: DecoderCache | None = None, front: Front | None = None
    ) -> Tensor:
        if (self.front() if front is None else front).keys:
            raise ModelError("a recurrent model has no keys and values to train", mend="use prompt-tuning, or full")
        kept = cache if isinstance(cache, StateCache) else StateCache()
        begun, (b, t) = kept.begun, tokens.shape
        read = self.hf.get_decoder()
        hidden, kept.parts = read(
            tokens.to(self.device), memory.hidden, memory.mask.to(memory.hidden.dtype), kept.parts
        )
        kept.read += t
        self.work.add(tokens=b * t, pairs=t * int(memory.lengths.sum()), grad=hidden.requires_grad)
        if not begun:
            self.work.add_encoder(memory=memory.mask.numel(), grad=memory.hidden.requires_grad)
        return hidden

    def fresh(self, rows: int, front: Front | None = None) -> DecoderCache:  # noqa: ARG002
        return StateCache()

    def keys_of(self, text: Sequence[int]) -> LayerKeys:  # noqa: ARG002
        raise ModelError("a recurrent model has no keys and values to train", mend="use full, or prompt-tuning")


def causal(model: LanguageModel, what: str) -> CausalModel:
    """The model, for what only a causal one can do.

    Raises:
        ModelError: it is an encoder–decoder, or an encoder.
    """
    if not isinstance(model, CausalModel):
        kind = "an encoder" if model.encoder else "an encoder–decoder"
        raise ModelError(f"{what} is not defined for {kind} base", mend="use a causal base")
    return model


def model_for(
    hf: Any,
    front: Callable[[], Front] | None = None,
    *,
    inferring: Callable[[], AbstractContextManager[Any]] | None = None,
) -> LanguageModel:
    """A transformers model as a `CausalModel` (a recurrent one its kind), `EncoderDecoderModel` or `EncoderModel`."""
    kind: type[LanguageModel] = EncoderDecoderModel if hf.config.is_encoder_decoder else CausalModel
    if isinstance(hf, RecurrentForCausalLM):
        kind = RecurrentModel
    elif is_encoder(hf.config):
        kind = EncoderModel
    elif isinstance(hf, RecurrentAttentionForSeq2SeqLM):
        kind = RecurrentEncoderDecoder
    return kind(hf, front, inferring=inferring)


@torch.no_grad()
def probe(model: EncoderDecoderModel, tokens: Sequence[int]) -> float:
    """Largest absolute difference between our log-probabilities and the model's own forward pass on two sequences.

    The check that an architecture is computed correctly in parts; `load.py` refuses a model that fails it. Two prompts
    of different lengths go through the encoder together, and the decoder reads their answers in two turns.

    Raises:
        ValueError: its layers have names from which its work cannot be counted.
    """
    weights, _, pair = encoder_decoder_parts(model.hf)
    if not model.recurrent and not all((*weights.values(), pair["encoder"], pair["decoder"])):
        raise ValueError("its attention layers are not found by their names")
    half = len(tokens) // 2
    prompts = [list(tokens), list(tokens[:half])]
    read = torch.tensor([[*model.start, *tokens[half:]]], device=model.device)
    memory = model.encode(prompts)
    cache = model.fresh(2, Front())
    first = model.decode(read[:, :2].expand(2, -1), memory, cache)
    turned = torch.tensor([1, 0], device=model.device)  # rows may be chosen anew between two turns
    memory, cache = memory.select(turned), cache.select(turned, int(memory.lengths.max()))
    hidden = torch.cat([first[turned], model.decode(read[:, 2:].expand(2, -1), memory, cache)], dim=1)
    worst = 0.0
    for prompt, states in zip(reversed(prompts), hidden, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        own = model.hf(input_ids=ids, decoder_input_ids=read, use_cache=False).logits[0].float()
        difference = own.log_softmax(-1) - model.output(states).float().log_softmax(-1)
        worst = max(worst, float(difference.abs().max()))
    return worst
