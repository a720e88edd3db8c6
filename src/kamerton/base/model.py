"""A language model as the rest of Kamerton sees it: tokens in, hidden states and log-probabilities out.

`LanguageModel` is what all models have in common. `CausalModel` wraps a transformers causal model (with LoRA layers
injected, or not) and whatever stands before every sequence (soft prompts, prefix keys and values). It packs rows behind
one shared prefix (`attention.py`). Encoder–decoder models are in `encoder_decoder.py`. In both the output layer is
applied only where somebody asks for it, in chunks: for a small model with a large vocabulary that layer is a fifth of
the work and nearly all of the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kamerton.base.attention import NAME, LayerKeys, Layout, RowCache
from kamerton.base.draft import Draft
from kamerton.base.draft import state as draft_state
from kamerton.base.frozen import FrozenLayers
from kamerton.base.inserts import Inserts, behind
from kamerton.base.kernels import Kernels, TargetLogProbs
from kamerton.base.lean import Lean, hooked, lean, own_projections
from kamerton.base.linears import PackedLinears
from kamerton.base.output_chunks import OUTPUT_CHUNK, in_chunks
from kamerton.base.passes import Front, Hidden, Shared, Targets
from kamerton.base.work import Work


class LanguageModel:
    """What causal and encoder–decoder models have in common: their surface towards training and inference.

    Args:
        hf: the transformers model; adapters that inject layers (LoRA) may live inside it.
        front: called at every pass for what stands before each sequence; None for nothing.
        inferring: entered around passes without gradient over which the weights do not change.

    Attributes:
        frozen: what lower layers that do not change gave for the sequences of training; None where all may change.
    """

    encoder_decoder: ClassVar[bool]
    encoder: ClassVar[bool] = False
    """Whether it is an encoder alone, which writes no text."""
    task_type: ClassVar[str]
    """peft's name for this kind of model."""

    def __init__(
        self,
        hf: Any,
        front: Callable[[], Front] | None = None,
        *,
        inferring: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.hf = hf
        self.config = hf.config.get_text_config()
        self._front, self._enter = front, inferring
        self.frozen: FrozenLayers | None = None
        self.work = Work().belongs(self)
        self._linears: PackedLinears | None = None
        self._kernels: Kernels | None = None
        self._inferring = 0

    @property
    def device(self) -> torch.device:
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the model has positions for, or None where its configuration does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def soft_tokens(self) -> int:
        """Positions that whatever is attached takes of every sequence."""
        return len(self.front())

    def front(self) -> Front:
        """What stands before every sequence; computed again at every call."""
        if self._front is None:
            return Front()
        if torch.is_inference_mode_enabled():
            # a parameterisation may keep what it computes here for training, where inference tensors are refused
            with torch.inference_mode(False), torch.no_grad():
                return self._front()
        return self._front()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Many passes without gradient and with weights that do not change: linear layers may be prepared once."""
        if self._linears is None:
            self._linears = PackedLinears(self.hf)
        self._linears.refresh()
        self._inferring += 1
        self.work.add(passes=1 if self._inferring == 1 else 0)
        around = self._enter() if self._enter is not None and self._inferring == 1 else nullcontext()
        try:
            with around:
                yield
        finally:
            self._inferring -= 1

    def share_weights(self, other: LanguageModel) -> int:
        """Take from another model every weight that is the same there, so that it is in memory once.

        Layers that an adapter stands around are compared too. Nothing may be trained afterwards.

        Returns:
            Bytes that are no longer held twice.
        """
        if self.hf is other.hf:
            return 0
        known = dict(other.hf.named_parameters(remove_duplicate=False))
        saved, done = 0, set()
        for path, module in self.hf.named_modules():
            for name, own in list(module._parameters.items()):
                there = known.get(f"{path}.{name}".replace(".base_layer.", "."))
                if own is None or there is None or own is there or own.dtype != there.dtype:
                    continue
                if own.shape != there.shape or own.device != there.device or not torch.equal(own, there):
                    continue
                if own.data_ptr() not in done:
                    saved += own.numel() * own.element_size()
                done.add(own.data_ptr())
                module._parameters[name] = there
        if saved:
            if other._linears is None:
                other._linears = PackedLinears(other.hf)
            self._linears = PackedLinears(self.hf, like=other._linears)
        return saved

    def _prepared(self) -> AbstractContextManager[None]:
        """Around a pass: what is between linear layers made quicker with gradients, else linear layers packed."""
        if torch.is_grad_enabled():
            if self._kernels is None:
                self._kernels = Kernels(self.hf)
            return self._kernels.active()
        return self._linears.active() if self._inferring and self._linears is not None else nullcontext()

    def prompt_limit(self, answer: int, front: int | None = None) -> int | None:
        """The longest prompt in tokens that leaves room for an answer; None where nothing bounds it.

        Args:
            answer: tokens of the answer; it is granted at most half of the positions.
            front: positions in front of the prompt; default: the model's own front.
        """
        raise NotImplementedError

    def answer_limit(self, prompt: int) -> int | None:
        """The longest answer in tokens behind a prompt of so many tokens, below 1 where there is no room for one."""
        raise NotImplementedError

    def example_limit(self, front: int) -> int | None:
        """The longest training example in tokens behind so many positions in front; None where nothing bounds it.

        Of an encoder–decoder it is the longest prompt, and the longest answer.
        """
        return None if self.max_length is None else self.max_length - front

    def keys_of(self, text: Sequence[int]) -> LayerKeys:
        """Per layer keys and values (H_kv, n, D) of a text of n tokens, without gradient."""
        raise NotImplementedError

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """(n, H) final hidden states of each row's tokens, the encoder's where there is one."""
        raise NotImplementedError

    def next_hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(N, H) hidden states from which the token behind each prompt is predicted."""
        raise NotImplementedError

    def target_log_probs(self, batch: Targets) -> Tensor:
        """(N,) float32 log-probabilities in nats of a batch's targets, with gradient."""
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        """The output layer: hidden states (N, H) → logits (N, V), with the model's own scaling and soft cap."""
        config = self.config
        self.work.add(outputs=hidden.shape[0], grad=hidden.requires_grad)
        multiplier = getattr(config, "lm_head_multiplier", None)
        with self._prepared():
            logits = self.hf.get_output_embeddings()(hidden)
        if multiplier is not None:
            logits = logits * multiplier
        scale = getattr(config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        divide = getattr(config, "logits_scaling", None)
        if divide is not None:
            logits = logits / divide
        cap = getattr(config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def log_probs(self, hidden: Tensor, targets: Tensor, chunk: int = OUTPUT_CHUNK) -> Tensor:
        """Log-probability of `targets` (N,) under hidden states (N, H) → (N,) float32.

        Goes through the output layer in chunks (`output_chunks.py`).
        """

        def one(h: Tensor, t: Tensor) -> tuple[Tensor]:
            return (TargetLogProbs.apply(self.output(h), t),)

        return in_chunks(one, hidden, targets, chunk, layer=self.hf.get_output_embeddings())[0]


class CausalModel(LanguageModel):
    """A transformers causal model (`…ForCausalLM`) behind packs, shared prefixes and a chunked output layer."""

    encoder_decoder = False
    task_type = "CAUSAL_LM"

    def __init__(
        self,
        hf: Any,
        front: Callable[[], Front] | None = None,
        *,
        inserts: Inserts | None = None,
        inferring: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        super().__init__(hf, front, inferring=inferring)
        self.inserts = inserts
        self._lean: Lean | None = None
        self._hooked: Callable[[], bool] = bool
        self._draft: tuple[tuple[object, ...], Draft | None] | None = None
        self._draft_fits = False
        self.decoded_alone = 0

    @property
    def inserted(self) -> int:
        """Soft tokens that stand inside each row."""
        return 0 if self.inserts is None else self.inserts.count

    @property
    def soft_tokens(self) -> int:
        return len(self.front()) + self.inserted

    def sharable(self, shortest: int) -> int:
        """How many first tokens of prompts may be computed once for all where the shortest prompt has so many."""
        return shortest - 1 if self.inserts is None else self.inserts.sharable(shortest)

    def prompt_limit(self, answer: int, front: int | None = None) -> int | None:
        if self.max_length is None:
            return None
        return self.max_length - (self.soft_tokens if front is None else front) - min(answer, self.max_length // 2)

    def answer_limit(self, prompt: int) -> int | None:
        return None if self.max_length is None else self.max_length - self.soft_tokens - prompt

    def keys_of(self, text: Sequence[int]) -> LayerKeys:
        return self.prefill(text).keys

    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        hidden = self.forward(rows, prompts=rows)
        return list(hidden.rows.split(list(hidden.lengths)))

    def next_hidden(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self.forward(prompts, prompts=prompts).last()

    def target_hidden(self, batch: Targets) -> Tensor:
        """(N, H) hidden states from which a batch's targets are predicted, with gradient."""
        if self.inserts is None:
            rows, positions = self.forward(batch.rows, prefix=batch.prefix).rows, batch.positions
        else:
            prefix, own, prompts, positions = behind(batch, self.inserts.tail)
            rows = self.forward(own, prefix=prefix, prompts=prompts).rows
        return rows.index_select(0, torch.as_tensor(positions, device=rows.device))

    def target_log_probs(self, batch: Targets) -> Tensor:
        picked = self.target_hidden(batch)
        return self.log_probs(picked, torch.as_tensor(batch.targets, device=picked.device))

    @contextmanager
    def _attention(self) -> Iterator[None]:
        # the implementation is swapped for the length of one pass, so that the model stays an ordinary one to others
        own: list[Any] = [self.hf.config, self.config, self._backbone().config]
        configs = {id(c): c for c in own}.values()
        before = [c._attn_implementation for c in configs]
        for c in configs:
            c._attn_implementation_internal = NAME
        try:
            yield
        finally:
            for c, name in zip(configs, before, strict=True):
                c._attn_implementation_internal = name

    def _backbone(self) -> nn.Module:
        decoder = self.hf.get_decoder()
        return decoder if decoder is not None else self.hf.base_model

    def forward(
        self,
        rows: Sequence[Sequence[int]],
        *,
        prefix: Sequence[int] = (),
        shared: Shared | None = None,
        cache: RowCache | None = None,
        slots: Sequence[int] | None = None,
        tree: Tensor | None = None,
        depths: Sequence[Sequence[int]] | None = None,
        record: LayerKeys | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
        draft: Draft | None = None,
    ) -> Hidden:
        """One pass over `prefix` (seen by every row) and the rows' new tokens.

        Args:
            rows: token ids of each row; every row has at least one token. May be empty if there is a prefix.
            prefix: token ids that all rows see; the model's front (soft prompt) stands before them. Not together
                with `shared`, which contains the front already.
            shared: a prefix computed earlier by `prefill`.
            cache: the rows' earlier tokens, extended in place (without gradient).
            slots: the cache slots of the rows; default: the first len(rows).
            tree: (B, S, S) booleans, see `Layout.tree`; then `depths` gives each token's position within its row.
            record: receives the prefix's keys and values.
            prompts: all prompt tokens of each row, those of the prefix too, where rows begin with the rest of their
                prompts; a model that puts something of its own into rows (`inserts`) makes it of these.
            draft: the model's rough copy, whose layers are to be taken.

        Returns:
            Hidden states after the final norm; those of soft tokens inside rows are left out.
        """
        plain = shared is None and cache is None and tree is None and record is None and self._front is None
        plain = plain and self.inserts is None
        plain = plain and not (self._inferring or torch.is_inference_mode_enabled())  # whose tensors cannot be kept
        if self.frozen is not None and plain and rows and not self.frozen.recording:
            return self._forward_upper(self.frozen, rows, prefix)
        device = self.device
        front = Front() if shared is not None else self.front()
        keys = shared.keys if shared is not None else front.keys
        past = int(keys[0][0].shape[1]) if keys else 0
        soft = front.embeddings
        n_soft = 0 if soft is None else int(soft.shape[0])
        ids = torch.tensor([*prefix, *(t for row in rows for t in row)], dtype=torch.long, device=device)
        lengths = given = tuple(len(row) for row in rows)
        p = n_soft + len(prefix)
        placed = None
        if self.inserts is not None and prompts is not None and rows:
            placed = self.inserts.placed(lengths, prompts, shared.tokens if shared is not None else len(prefix))
            lengths = placed.lengths
            depths = placed.depths(depths) if depths is not None else None
            tree = placed.tree(tree) if tree is not None else None
        starts = torch.zeros(len(rows), dtype=torch.long)
        if cache is not None:
            starts = cache.lengths[torch.as_tensor(list(slots) if slots is not None else list(range(len(rows))))]
        parts = [torch.arange(past, past + p)]
        if depths is None:
            counts = torch.as_tensor(lengths, dtype=torch.long)
            offsets = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
            parts.append(past + p + torch.repeat_interleave(starts, counts) + offsets)
        else:
            parts.extend(past + p + int(start) + torch.as_tensor(d) for start, d in zip(starts, depths, strict=True))
        positions = torch.cat(parts).to(device)
        layout = Layout(
            prefix=p,
            lengths=lengths,
            positions=positions,
            shared=keys,
            cache=cache,
            slots=slots,
            tree=tree,
            record=record,
            placed=placed,
        )
        embeds = self.hf.get_input_embeddings()(ids)
        if placed is not None:
            embeds = torch.cat([embeds[: len(prefix)], placed.put(embeds[len(prefix) :])])
        if soft is not None:
            embeds = torch.cat([soft.to(embeds.dtype), embeds])
        with self._attention(), self._prepared():
            if draft is not None:
                hidden = draft.layers(embeds.to(torch.bfloat16), positions, layout)
            else:
                hidden = self._through_layers(embeds, positions, layout)
        if not layout.used:  # it would look from one row into another
            raise NotImplementedError("its attention does not go through transformers' attention interface")
        before = p * past + sum(lengths) * (past + p) + sum(n * int(s) for n, s in zip(lengths, starts, strict=True))
        own = p * (p + 1) // 2 + sum(n * (n + 1) // 2 for n in lengths)
        passes, grad = 0 if self._inferring else 1, hidden.requires_grad
        if self.frozen is not None and self.frozen.recording:  # only the lower layers did anything
            self.work.add(replayed=-len(positions), replayed_pairs=-(before + own))
        else:
            read = past + p + sum(lengths) + int(starts.sum())
            self.work.add(tokens=len(positions), pairs=before + own, passes=passes, keys=read, grad=grad)
        if cache is not None:
            used = torch.as_tensor(list(slots) if slots is not None else list(range(len(rows))))
            cache.lengths[used] += torch.as_tensor(lengths)
        return Hidden(hidden[:p], hidden[p:] if placed is None else placed.take(hidden[p:]), given)

    def _through_layers(self, embeds: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """(T, H) embeddings → (T, H) hidden states, past transformers' modules where that is the same and quicker."""
        if self._lean is not None and not torch.is_grad_enabled() and not self._hooked():
            return self._lean(embeds, positions, layout)
        out = self._backbone()(inputs_embeds=embeds[None], position_ids=positions[None], use_cache=False, layout=layout)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @contextmanager
    def inference(self) -> Iterator[None]:
        with super().inference():
            before = self._lean
            if self._inferring == 1:  # layers may have been put in since the last time
                backbone = self._backbone()
                self._draft_fits = False
                self._lean, self._hooked = lean(backbone, own_projections), hooked(backbone)
            try:
                yield
            finally:
                self._lean = before

    def draft(self) -> Draft | None:
        """The model's rough copy, made where there is none of these weights; None where it cannot have one.

        Raises:
            RuntimeError: outside of `inference`, where weights may change.
        """
        if not self._inferring:
            raise RuntimeError("a draft is of weights that do not change: ask for it within inference()")
        if not self._draft_fits:
            now = draft_state(self.hf)
            if self._draft is None or self._draft[0] != now:
                self._draft = None  # its memory first
                self._draft = now, Draft.of(self.hf, self._backbone()) if self._lean is not None else None
            self._draft_fits = True
        return None if self._draft is None else self._draft[1]

    def _forward_upper(self, frozen: FrozenLayers, rows: Sequence[Sequence[int]], prefix: Sequence[int]) -> Hidden:
        """`forward` where the lower layers are frozen: they see only rows that they have not seen before."""
        missing, found = frozen.missing(prefix, rows), {}
        if missing:
            with frozen.record() as grabbed:
                self.forward(missing, prefix=prefix)
            found = frozen.keep(prefix, missing, grabbed[0][0])
        before = self.work.copy()
        with frozen.replay(prefix, rows, found):
            self.frozen = None
            try:
                hidden = self.forward(rows, prefix=prefix)
            finally:
                self.frozen = frozen
        own = self.work - before
        self.work.add(replayed=own.tokens, replayed_pairs=own.pairs)
        return hidden

    @torch.no_grad()
    def prefill(self, prefix: Sequence[int]) -> Shared:
        """Run the front and a shared prefix once; the result goes to `forward(shared=…)` any number of times."""
        front = self.front()
        if not prefix and front.embeddings is None:
            return Shared(front.keys or [], None, 0)
        record: LayerKeys = []
        hidden = self.forward([], prefix=prefix, record=record)
        return Shared(record, hidden.prefix[-1], len(prefix))


def probe(model: CausalModel, tokens: Sequence[int]) -> float:
    """Largest absolute difference between our log-probabilities and the model's own forward pass on one sequence.

    The check that an architecture is computed correctly through packs; `load.py` refuses a model that fails it. Half of
    the tokens go in as a prefix, half as a row, so that both kinds of attention are exercised; the row stands there
    twice, so that a model whose attention looks from one row into another is found out.
    """
    ids = torch.tensor([list(tokens)], device=model.device)
    half = len(tokens) // 2
    with torch.no_grad():
        own = model.hf(input_ids=ids, use_cache=False).logits[0].float()
        packed = model.forward([tokens[half:]] * 2, prefix=tokens[:half])
        ours = model.output(torch.cat([packed.prefix, packed.rows])).float()
    return float((torch.cat([own, own[half:]]).log_softmax(-1) - ours.log_softmax(-1)).abs().max())
