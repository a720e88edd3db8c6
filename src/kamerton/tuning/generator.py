"""The prompt generator as a tuner of peft's: a small network that turns a query into soft prompt tokens, or into keys
and values of every layer.

A frozen model's own states of the query (`inference/features.py`) are pooled by attention with one learned query for
each soft token, projected to a few numbers, and from there onto the embedding space, in units of the spread of the
model's embeddings. What comes out is added to static soft tokens; its last matrix is zero at the start, so that at step
0 the method is prompt tuning (Lester et al. 2021). Soft prompts that depend on the input were proposed by Wu et al.
2022 (IDPG, arXiv 2204.04497). Keys and values are made in the same way; in front of the prompt they start as prefix
tuning (Li & Liang 2021).

This module registers the method with peft under the name `prompt_generator`; a program that loads such an adapter with
peft alone imports this module first. Through peft alone whole sequences can be scored (one forward pass); answers are
generated through Kamerton's engine, which makes the soft tokens once for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers import DynamicCache

from kamerton.base.attention import LayerKeys
from kamerton.errors import ModelError
from kamerton.inference.features import Features
from kamerton.tuning.layer_keys import by_layer
from kamerton.tuning.peft_types import enter

NAME = "prompt_generator"
_TYPE = enter(NAME)
KEYS_RATE = 0.4
"""How fast keys and values move beside embeddings: prefix tuning's learning rates over those of prompt tuning."""


@dataclass
class GeneratorConfig(PeftConfig):
    """What peft keeps of a generator in `adapter_config.json`.

    Attributes:
        num_static: n, soft tokens in front of everything, the same for all queries.
        num_generated: m, soft tokens that depend on the query.
        hidden_size: H of the base.
        rank: numbers that each generated token is made of.
        key_size: width of the attention over the query's states.
        noise: random numbers that go in beside the query; 0: none.
        tail: the token ids that end every prompt, behind its last message; the generated tokens stand before them.
        front: the generated tokens stand before the whole prompt.
        middle: which share of the base's layers lies below the middle one that is read.
        num_layers, num_key_heads, head_size: of keys and values that are made in place of soft tokens; 0: soft tokens.
    """

    num_static: int = field(default=100)
    num_generated: int = field(default=8)
    hidden_size: int = field(default=0)
    rank: int = field(default=16)
    key_size: int = field(default=16)
    noise: int = field(default=0)
    tail: list[int] = field(default_factory=list)
    front: bool = field(default=False)
    middle: float = field(default=0.5)
    num_layers: int = field(default=0)
    num_key_heads: int = field(default=0)
    head_size: int = field(default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = _TYPE

    @property
    def width(self) -> int:
        """W, numbers of a soft token: of an embedding, or of the keys and values of all layers."""
        return 2 * self.num_layers * self.num_key_heads * self.head_size or self.hidden_size


class Generator(nn.Module):
    """Static soft tokens, and soft tokens that depend on a query; each stands for W numbers.

    Args:
        config: sizes.

    Attributes:
        start: (n + m, W) where the soft tokens start; `unit`: (W,) or () the spread of such numbers in the base.
        distance: (n + m, W) how far they have moved, in these units.
    """

    start: Tensor
    unit: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        n, m, h, w, r = config.num_static, config.num_generated, config.hidden_size, config.width, config.rank
        self.static, self.generated, self.noise = n, m, config.noise
        self.register_buffer("start", torch.zeros(n + m, w))
        self.register_buffer("unit", torch.ones(w if config.num_layers else ()))
        self.distance = nn.Parameter(torch.zeros(n + m, w))
        self.probes = nn.Parameter(torch.randn(m, config.key_size))
        self.keys = nn.Linear(2 * h, config.key_size, bias=False)
        self.values = nn.Linear(2 * h, r)
        self.shift = nn.Parameter(torch.zeros(m, r))
        self.mix = nn.Linear(config.noise, r, bias=False) if config.noise else None
        self.up = nn.Linear(r, w, bias=False)
        nn.init.zeros_(self.up.weight)
        # Adam moves every number by about the learning rate: numbers that many others are summed over move less
        own = KEYS_RATE if config.num_layers else 1.0
        self.distance.rate = own  # type: ignore[attr-defined]
        for part, rate in ((self.keys, 0.02), (self.values, 0.02), (self.mix, 0.02), (self.up, 0.1 * own)):
            for parameter in part.parameters() if part is not None else ():
                parameter.rate = rate  # type: ignore[attr-defined]
        self.probes.rate = self.shift.rate = 0.1  # type: ignore[attr-defined]

    def front(self) -> Tensor:
        """(n, W) static soft tokens."""
        n = self.static
        return self.start[:n] + self.unit * self.distance[:n]

    def forward(self, features: Sequence[Tensor], noise: Tensor | None = None) -> Tensor:
        """Soft tokens of queries.

        Args:
            features: B queries' features, each (L, 2H).
            noise: (B, z) random numbers; none: zeros.

        Returns:
            (B, m, W).
        """
        lengths = torch.tensor([len(f) for f in features], device=self.start.device)
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True)  # (B, L, 2H)
        hidden = torch.arange(padded.shape[1], device=lengths.device)[None, :] >= lengths[:, None]
        scores = self.keys(padded) @ self.probes.T / self.probes.shape[1] ** 0.5  # (B, L, m)
        weights = scores.masked_fill(hidden[:, :, None], -torch.inf).softmax(1)
        inner = weights.transpose(1, 2) @ self.values(padded) + self.shift  # (B, m, r)
        if self.mix is not None and noise is not None:
            inner = inner + self.mix(noise)[:, None]
        own = self.start[self.static :] + self.unit * self.distance[self.static :]
        return own + self.unit * self.up(torch.tanh(inner))


class Networks(nn.Module, BaseTunerLayer):
    """The generators by name, where peft looks for what belongs to an adapter."""

    adapter_layer_names = ("generator_networks",)

    def __init__(self, adapter_name: str) -> None:
        super().__init__()
        self.generator_networks = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []


class GeneratorModel(BaseTuner):
    """peft's side of it: the base with any number of generators, of which the active one is used."""

    prefix = "generator_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Add a generator; the base's own modules stay as they are."""
        if "holder" not in self._modules:
            self.holder = Networks(adapter_name)
            self.features: dict[float, Features] = {}
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        config: Any = self.peft_config[adapter_name]
        network = Generator(config).to(next(model.parameters()).device)
        network.requires_grad_(not config.inference_mode)
        self.holder.generator_networks[adapter_name] = network

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Use another generator."""
        name = adapter_name if isinstance(adapter_name, str) else adapter_name[0]
        for other, network in self.holder.generator_networks.items():
            network.requires_grad_(other == name and not inference_mode)
        self.active_adapter = self.holder._active_adapter = name

    def enable_adapter_layers(self) -> None:
        self.holder._disable_adapters = False

    def disable_adapter_layers(self) -> None:
        self.holder._disable_adapters = True

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a generator replaces no module")

    @property
    def network(self) -> Any:
        """The active generator."""
        return self.holder.generator_networks[self.active_adapters[0]]

    @property
    def config_in_use(self) -> Any:
        return self.peft_config[self.active_adapters[0]]

    def keys(self, numbers: Tensor) -> LayerKeys:
        """(…, n, W) soft tokens → per layer the keys and values that they stand for, each (…, H_kv, n, D)."""
        return by_layer(numbers, self.config_in_use.num_layers, self.config_in_use.num_key_heads)

    def reader(self) -> Features:
        """What reads queries for the active generator."""
        share = self.config_in_use.middle
        if share not in self.features:
            self.features[share] = Features(self.model, middle=share)
        return self.features[share]

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Whole sequences, each a prompt and perhaps an answer, padded on the right: logits of the real tokens.

        Raises:
            ModelError: a sequence without the end of a prompt in it, or embeddings in place of tokens.
        """
        if self.holder.disable_adapters:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, labels=labels, **kwargs
            )
        if input_ids is None:
            raise ModelError("a prompt generator reads tokens, not embeddings", mend="give input_ids")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        config, embed = self.config_in_use, self.model.get_input_embeddings()
        rows = [ids[: int(n)].tolist() for ids, n in zip(input_ids, mask.sum(1), strict=True)]
        prompts = [row[: _prompt_end(row, config.tail)] for row in rows]
        soft = self.network(self.reader()(prompts))  # (B, m, W)
        if config.num_layers:
            return self._behind_keys(rows, prompts, soft, input_ids.shape[1], labels)
        front, m, parts, kept = self.network.front(), config.num_generated, [], []
        for row, prompt, own in zip(rows, prompts, soft, strict=True):
            place = 0 if config.front else len(prompt) - len(config.tail)
            tokens = embed(torch.tensor(row, device=input_ids.device))
            parts.append(torch.cat([front.to(tokens.dtype), tokens[:place], own.to(tokens.dtype), tokens[place:]]))
            places = torch.arange(len(row), device=input_ids.device)
            kept.append(len(front) + places + torch.where(places >= place, m, 0))
        lengths = [len(part) for part in parts]
        embeds = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        seen = torch.arange(embeds.shape[1], device=embeds.device)[None, :] < torch.tensor(lengths)[:, None].to(
            embeds.device
        )
        kwargs.pop("use_cache", None)
        out = self.model(inputs_embeds=embeds, attention_mask=seen.long(), use_cache=False, **kwargs)
        rows_out = [logits[index] for logits, index in zip(out.logits, kept, strict=True)]
        return self._finished(out, rows_out, input_ids.shape[1], labels)

    def _behind_keys(
        self, rows: Sequence[list[int]], prompts: Sequence[list[int]], soft: Tensor, length: int, labels: Tensor | None
    ) -> Any:
        """`forward` with keys and values: row by row, since what is made stands inside each at another place."""
        config, device, dtype = self.config_in_use, soft.device, self.model.get_input_embeddings().weight.dtype
        front, found = self.keys(self.network.front().to(dtype)), []
        for row, prompt, own in zip(rows, prompts, soft, strict=True):
            place, cache = 0 if config.front else len(prompt) - len(config.tail), DynamicCache()
            parts = ((front, row[:place]), (self.keys(own.to(dtype)), row[place:]))
            logits = []
            for made, tokens in parts:
                for layer, (key, value) in enumerate(made):
                    cache.update(key[None], value[None], layer)
                if tokens:
                    ids = torch.tensor([tokens], device=device)
                    out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
                    logits.append(out.logits[0])
            found.append(torch.cat(logits))
        out.past_key_values = None
        return self._finished(out, found, length, labels)

    def _finished(self, out: Any, rows: Sequence[Tensor], length: int, labels: Tensor | None) -> Any:
        """A model's output with these logits of each row in it, padded to a length, and the loss."""
        logits = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        out.logits = nn.functional.pad(logits, (0, 0, 0, length - logits.shape[1]))
        if labels is not None:
            out.loss = self.model.loss_function(out.logits, labels, vocab_size=out.logits.shape[-1])
        return out


def _prompt_end(row: Sequence[int], tail: Sequence[int]) -> int:
    """Tokens up to the end of the last prompt in a sequence."""
    for end in range(len(row), len(tail) - 1, -1):
        if list(row[end - len(tail) : end]) == list(tail):
            return end
    raise ModelError("a sequence has no end of a prompt in it", mend="give whole prompts in the model's template")


register_peft_method(name=NAME, config_cls=GeneratorConfig, model_cls=GeneratorModel, prefix="generator_")
