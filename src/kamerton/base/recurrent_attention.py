"""An LSTM encoder–decoder with additive attention (Bahdanau et al. 2015, arXiv 1409.0473), as a transformers model.

The encoder reads the source in both directions. At every step the decoder scores each of the encoder's states against
its own last state, v · tanh(W s + U h), reads their mean by the softmax of the scores, and predicts from its new state
and that mean. `generate` works, with beam search too; saved as safetensors, `AutoModelForSeq2SeqLM` loads it once this
module is imported. The decoder's layers step one token at a time: attention looks at the state before.

What it leaves out: the maxout layer of the paper (a tanh layer stands in its place) and its word classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from kamerton.base.recurrent import Recurrent, State, run


class RecurrentAttentionConfig(PreTrainedConfig):
    """Configuration of the encoder–decoder.

    Args:
        vocab_size, hidden_size, num_hidden_layers: V of both languages, H of embeddings and states (the encoder has
            H / 2 in each direction), and layers of each half.
        dropout: on embeddings, between layers, and before the output layer.
    """

    model_type = "kamerton-recurrent-attention"

    def __init__(
        self, vocab_size: int = 256, hidden_size: int = 256, num_hidden_layers: int = 2, dropout: float = 0.1,
        tie_word_embeddings: bool = True, decoder_start_token_id: int = 0, **kwargs: Any,
    ) -> None:  # fmt: skip
        if hidden_size % 2:
            raise ValueError(f"hidden_size must be even, not {hidden_size}: half of it reads in each direction")
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.dropout = dropout
        self.num_attention_heads = 1  # peft wants to read a number
        kwargs.pop("is_encoder_decoder", None)
        super().__init__(
            is_encoder_decoder=True, tie_word_embeddings=tie_word_embeddings,
            decoder_start_token_id=decoder_start_token_id, **kwargs,
        )  # fmt: skip


@dataclass
class RecurrentAttentionOutput(ModelOutput):
    """What a pass gives; `state` is carried by `generate`: the decoder's states and the last mean of the encoder's."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    state: State | None = None
    encoder_last_hidden_state: Tensor | None = None


class Encoder(nn.Module):
    """Reads the source in both directions."""

    main_input_name = "input_ids"

    def __init__(self, config: RecurrentAttentionConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        between = config.dropout if config.num_hidden_layers > 1 else 0.0
        self.layers = nn.LSTM(
            config.hidden_size, config.hidden_size // 2, config.num_hidden_layers, batch_first=True, dropout=between,
            bidirectional=True,
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, **kwargs: Any,  # noqa: ARG002 - generate passes more
    ) -> BaseModelOutput:  # fmt: skip
        """(B, L) ids, padded behind where the mask is 0 → (B, L, H) states."""
        embeds = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        lengths = None if attention_mask is None else attention_mask.sum(1).tolist()
        out, _ = run(self.layers, self.dropout(embeds), None, lengths)
        return BaseModelOutput(last_hidden_state=self.dropout(out))


class Decoder(nn.Module):
    """Writes the answer, looking at the encoder's states at each token."""

    def __init__(self, config: RecurrentAttentionConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        h, self.depth = config.hidden_size, config.num_hidden_layers
        self.embedding = embedding
        self.cells = nn.ModuleList(nn.LSTMCell(2 * h if i == 0 else h, h) for i in range(self.depth))
        self.query, self.key, self.energy = nn.Linear(h, h, bias=False), nn.Linear(h, h), nn.Linear(h, 1, bias=False)
        self.start = nn.Linear(h, 2 * h * self.depth)
        self.join = nn.Linear(2 * h, h)
        self.dropout = nn.Dropout(config.dropout)

    def begin(self, memory: Tensor, mask: Tensor) -> State:
        """The states before the first token, from the encoder's mean: hidden, cells (D, B, H), mean (1, B, H)."""
        mean = (memory * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        both = torch.tanh(self.start(mean)).view(len(mean), 2, self.depth, -1).permute(1, 2, 0, 3)
        return both[0], both[1], torch.zeros_like(mean)[None]

    def forward(self, input_ids: Tensor, memory: Tensor, mask: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, T) tokens → (B, T, H) what the output layer reads, and the state behind them."""
        hidden, cell, context = self.begin(memory, mask) if state is None else state
        h, c, mean = list(hidden), list(cell), context[0]
        keys = self.key(memory)  # (B, L, H), once for all steps
        lowest = torch.finfo(memory.dtype).min
        embeds, read, means = self.dropout(self.embedding(input_ids)), [], []
        for t in range(input_ids.shape[1]):
            x = torch.cat([embeds[:, t], mean], dim=-1)
            for i, layer in enumerate(self.cells):
                h[i], c[i] = layer(x if i == 0 else self.dropout(x), (h[i], c[i]))
                x = h[i]
            scores = self.energy(torch.tanh(keys + self.query(x)[:, None]))[:, :, 0]  # (B, L)
            weights = scores.masked_fill(mask == 0, lowest).softmax(-1)
            mean = torch.bmm(weights[:, None], memory)[:, 0]
            read.append(x)
            means.append(mean)
        both = torch.cat([torch.stack(read, 1), torch.stack(means, 1)], dim=-1)
        return self.dropout(torch.tanh(self.join(both))), (torch.stack(h), torch.stack(c), mean[None])


class RecurrentAttentionForSeq2SeqLM(Recurrent):
    """The encoder–decoder; one embedding for both languages, tied to the output layer by default."""

    config_class = RecurrentAttentionConfig
    _tied_weights_keys = {  # noqa: RUF012 - transformers' own protocol
        "lm_head.weight": "embedding.weight",
        "encoder.embedding.weight": "embedding.weight",
        "decoder.embedding.weight": "embedding.weight",
    }

    def __init__(self, config: RecurrentAttentionConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder, self.decoder = Encoder(config, self.embedding), Decoder(config, self.embedding)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = self.encoder.embedding = self.decoder.embedding = cast(nn.Embedding, value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        state: State | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,  # noqa: ARG002 - generate passes more
    ) -> RecurrentAttentionOutput:
        """Sources (B, L) and answers (B, T), or labels in their place → logits (B, T, V).

        Args:
            attention_mask: (B, L) 0 on padding, which stands behind.
            state: what the decoder carries from the tokens before.
            labels: (B, T) targets, −100 where there is none; the decoder then reads them shifted by one.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        memory = encoder_outputs[0]
        if decoder_input_ids is None and labels is not None:
            begin = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
            decoder_input_ids = torch.cat([begin, labels[:, :-1].clamp(min=0)], dim=1)
        mask = memory.new_ones(memory.shape[:2]) if attention_mask is None else attention_mask.to(memory.dtype)
        hidden, after = self.decoder(decoder_input_ids, memory, mask, state)
        logits, loss = self.lm_head(hidden), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return RecurrentAttentionOutput(loss, logits, hidden, after, memory)

    def prepare_inputs_for_generation(  # what `generate` asks at every token
        self, input_ids: Tensor, state: State | None = None, attention_mask: Tensor | None = None,
        encoder_outputs: Any = None, **kwargs: Any,  # noqa: ARG002
    ) -> dict[str, Any]:  # fmt: skip
        tokens = input_ids if state is None else input_ids[:, -1:]
        return {"decoder_input_ids": tokens, "state": state, "attention_mask": attention_mask,
                "encoder_outputs": encoder_outputs}  # fmt: skip

    @staticmethod
    def _reorder_cache(state: State, beam_idx: Tensor) -> State:
        return tuple(part.index_select(1, beam_idx) for part in state)


AutoConfig.register(RecurrentAttentionConfig.model_type, RecurrentAttentionConfig)
AutoModelForSeq2SeqLM.register(RecurrentAttentionConfig, RecurrentAttentionForSeq2SeqLM)
