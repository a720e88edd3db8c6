"""Recurrent language models (Elman's RNN, LSTM, GRU) as transformers models, and as the rest of Kamerton sees them.

`RecurrentForCausalLM` is an ordinary transformers model: it is saved as a folder of safetensors, `AutoModelForCausalLM`
loads it once this module is imported (no code travels with the weights), and `generate` carries its state from token to
token. `RecurrentModel` gives it the surface that packs of tokens have (`model.py`), so that training, generation,
scoring and serving take it as they take a transformer: where attention would keep keys and values of every position,
here the state after every position stands.

The cells are torch's own, several layers on top of each other with dropout between them (Zaremba et al. 2014, arXiv
1409.2329). What it leaves out: projections, peepholes, and bidirectional models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.utils import ModelOutput

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

State = tuple[Tensor, ...]
"""(layers, B, H) after the last token: one tensor, or the two of an LSTM."""


class RecurrentConfig(PreTrainedConfig):
    """Configuration of a recurrent language model.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        vocab_size, hidden_size, num_hidden_layers: V, H (of embeddings and state), and layers.
        dropout: on embeddings, between layers, and before the output layer.
    """

    model_type = "kamerton-recurrent"

    def __init__(
        self, cell: str = "lstm", vocab_size: int = 256, hidden_size: int = 256, num_hidden_layers: int = 2,
        dropout: float = 0.0, tie_word_embeddings: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        if cell not in CELLS:
            raise ValueError(f"unknown cell {cell!r}: use one of {', '.join(CELLS)}")
        self.cell, self.vocab_size, self.hidden_size = cell, vocab_size, hidden_size
        self.num_hidden_layers, self.dropout = num_hidden_layers, dropout
        self.num_attention_heads = 1  # it has none; peft wants to read a number
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


@dataclass
class RecurrentOutput(ModelOutput):
    """What a pass gives.

    Attributes:
        loss: mean over labels, where labels were given.
        logits: (B, T, V).
        last_hidden_state: (B, T, H) what the output layer reads.
        state: after the last token.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    state: State | None = None


def initialise(module: nn.Module, width: int) -> None:
    """Fresh weights: recurrent layers as torch draws them, an LSTM's forget gates open, embeddings of unit length."""
    if isinstance(module, nn.RNNBase):
        for name, weight in module.named_parameters():
            initialization.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
            if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):  # gates: input, forget, cell, output
                with torch.no_grad():
                    if not getattr(weight, "_is_hf_initialized", False):
                        weight[module.hidden_size : 2 * module.hidden_size] = 1.0
    elif isinstance(module, nn.Embedding | nn.Linear):
        initialization.normal_(module.weight, 0.0, width**-0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            initialization.zeros_(module.bias)


def run(cell: Any, x: Tensor, state: State | None, lengths: Sequence[int] | None) -> tuple[Tensor, State]:
    """(B, T, H) through a torch recurrent layer → (B, T, H) and the state after each row's own last token.

    Args:
        state: before the first token; None: zeros.
        lengths: tokens of each row where rows are padded behind.
    """
    before = state if state is None or isinstance(cell, nn.LSTM) else state[0]
    if lengths is not None and len(set(lengths)) > 1:
        packed = pack_padded_sequence(x, torch.as_tensor(list(lengths)), batch_first=True, enforce_sorted=False)
        out, after = cell(packed, before)
        hidden, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    else:
        hidden, after = cell(x, before)
    return hidden, after if isinstance(after, tuple) else (after,)


class Recurrent(PreTrainedModel, GenerationMixin):
    """What recurrent models have in common: one `embedding`, an output layer `lm_head`, and a state that is carried."""

    embedding: nn.Embedding
    lm_head: nn.Linear
    _is_stateful = True
    main_input_name = "input_ids"

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, self.config.hidden_size)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # what is carried is the state, under the name `state`

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = cast(nn.Linear, new_embeddings)


class RecurrentForCausalLM(Recurrent):
    """A recurrent language model: embedding, layers of cells, output layer (tied to the embedding by default)."""

    config_class = RecurrentConfig
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012 - transformers' own protocol

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        between = config.dropout if config.num_hidden_layers > 1 else 0.0
        self.layers = CELLS[config.cell](
            config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def hidden(
        self, embeds: Tensor, state: State | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """(B, T, H) embeddings → (B, T, H) what the output layer reads, and the state behind each row."""
        out, after = run(self.layers, self.dropout(embeds), state, lengths)
        return self.dropout(out), after

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: State | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> RecurrentOutput:
        """(B, T) token ids → logits (B, T, V) and the state behind them.

        Args:
            attention_mask: (B, T) 0 on padding, on either side; rows are read without it.
            state: what stands before the first token.
            labels: (B, T) targets, shifted by one inside, −100 where there is none.
        """
        embeds = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None or state is not None or bool(attention_mask[:, : embeds.shape[1]].all()):
            hidden, after = self.hidden(embeds, state)
        else:
            lengths = attention_mask.sum(1)
            order = torch.argsort(attention_mask, dim=1, descending=True, stable=True)  # real tokens first, in order
            index = order[:, :, None].expand_as(embeds)
            packed, after = self.hidden(embeds.gather(1, index), None, lengths.tolist())
            hidden = torch.zeros_like(packed).scatter(1, index, packed)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            kept = {k: v for k, v in kwargs.items() if k == "num_items_in_batch"}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kept)
        return RecurrentOutput(loss=loss, logits=logits, last_hidden_state=hidden, state=after)

    def prepare_inputs_for_generation(  # what `generate` asks at every token
        self, input_ids: Tensor, state: State | None = None, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state}
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @staticmethod
    def _reorder_cache(state: State, beam_idx: Tensor) -> State:
        return tuple(part.index_select(1, beam_idx) for part in state)


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig)
AutoModelForCausalLM.register(RecurrentConfig, RecurrentForCausalLM)
