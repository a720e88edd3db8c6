"""A prompt generator in front of a frozen base: the parameterisation of `gan-prompt`. The network is in `generator.py`.

The static soft tokens stand in front of everything and go through the model once for all rows. Those that depend on the
query stand at its end, before the template's own end of the prompt, so that the shared front and instruction still go
through the model once; `place: front` puts them before the whole prompt.

With `into: keys-values` what is made are keys and values of every layer, beside a static prefix of such. They start
from real activations, as in prefix tuning (`prefix.py`), and move in the same units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kamerton.base.attention import LayerKeys
from kamerton.base.encoder_decoder import causal
from kamerton.base.inserts import FRONT, Inserts
from kamerton.base.load import Base
from kamerton.base.model import CausalModel
from kamerton.base.passes import Front
from kamerton.errors import ModelError
from kamerton.inference.prefix import common_prefix
from kamerton.inference.sampling import stream_key
from kamerton.rendering import Renderer
from kamerton.tasks.example import Message, Task
from kamerton.tuning.layer_keys import as_computed, flat, stacked
from kamerton.tuning.layer_keys import spread as spread_of_keys
from kamerton.tuning.parameterisation import Options, Tuned, load_peft
from kamerton.tuning.prompt import embeddings_of, spread
from kamerton.tuning.starts import STARTS, check_start, task_tokens


class PromptGeneratorOptions(Options):
    """Options of a prompt generator."""

    tokens: int = Field(100, gt=0, description="static soft tokens in front of everything")
    generated: int = Field(8, gt=0, description="soft tokens that are made of the query")
    into: Literal["tokens", "keys-values"] = Field(
        "tokens", description="what a soft token is: an embedding in the input, or keys and values in every layer"
    )
    rank: int = Field(16, gt=0, description="numbers that each generated token is made of")
    key_size: int = Field(16, gt=0, description="width of the attention over the query's states")
    noise: int = Field(0, ge=0, description="random numbers that go into a generated token beside the query")
    place: Literal["end", "front"] = Field(
        "end", description="generated tokens at the end of the prompt, or before the whole of it"
    )
    middle: float = Field(0.5, gt=0, le=1, description="share of the layers below the middle one that is read")
    init: Literal["examples", "task", "labels", "vocabulary"] = Field(
        "examples", description="what the static soft tokens start from, as in prompt tuning"
    )


class PromptGenerator:
    """Static soft tokens, and soft tokens made of the query."""

    name = "prompt-generator"
    options = PromptGeneratorOptions

    @staticmethod
    def check(base: Base, task: Task, options: PromptGeneratorOptions) -> None:
        """Refuse a start that the task does not have, and layers whose keys cannot be made together."""
        check_start(base, task, options.init, options.tokens)
        if options.into == "keys-values":
            _keys(base, torch.zeros(1, dtype=torch.long))

    @staticmethod
    def attach(base: Base, options: PromptGeneratorOptions, task: Task, seed: int) -> Tuned:
        from peft import get_peft_model

        from kamerton.tuning.generator import GeneratorConfig

        causal(base.model, "a prompt generator")
        ids = STARTS[options.init](base, task, options.tokens, seed)
        ids = torch.cat([ids, task_tokens(base, task, options.generated, seed)])
        sizes: dict[str, int] = {}
        if options.into == "tokens":
            start, unit = embeddings_of(base, ids), spread(base)
        else:
            layers = _keys(base, ids)  # (L, 2, H_kv, n + m, D)
            start, unit = flat(layers), flat(spread_of_keys(layers))[0]
            sizes = {"num_layers": len(layers), "num_key_heads": layers.shape[2], "head_size": layers.shape[4]}
        fresh = base.reload(frozen=True)
        torch.manual_seed(seed)
        config = GeneratorConfig(
            task_type="CAUSAL_LM", num_static=options.tokens, num_generated=options.generated,
            hidden_size=base.model.config.hidden_size, rank=options.rank, key_size=options.key_size,
            noise=options.noise, tail=prompt_tail(base.renderer), front=options.place == "front",
            middle=options.middle, **sizes,
        )  # fmt: skip
        peft = get_peft_model(fresh.model.hf, config)
        network = peft.base_model.network
        with torch.no_grad():
            network.start.copy_(start)
            network.unit.copy_(unit)
        return _tuned(fresh, peft)

    @staticmethod
    def load(base: Base, folder: Path) -> Tuned:
        import kamerton.tuning.generator  # noqa: F401 - makes it known to peft

        return _tuned(*load_peft(base, folder))


def prompt_tail(renderer: Renderer) -> list[int]:
    """The token ids that every prompt ends with, behind its last message's text."""
    first, second = (renderer.prompt((Message("user", text),)) for text in ("a b", "c d"))
    count = common_prefix([first[::-1], second[::-1]])
    return first[len(first) - max(count, 1) :]


def _keys(base: Base, ids: Tensor) -> Tensor:
    """(L, 2, H_kv, n, D) keys and values of a text.

    Raises:
        ModelError: layers without keys, or with keys of other shapes.
    """
    layers = base.model.keys_of(ids.tolist())
    if len(layers) != base.model.config.num_hidden_layers or len({x.shape for pair in layers for x in pair}) > 1:
        raise ModelError(
            f"{base.info.architecture} has layers with keys of other shapes, which cannot be made together",
            mend="use into: tokens",
        )
    return stacked(layers)


def _tuned(fresh: Base, peft: Any) -> Tuned:
    tuner = peft.base_model
    config = tuner.config_in_use

    def front() -> Front:
        with torch.autocast(fresh.model.device.type, enabled=False):
            numbers = tuner.network.front()
        return Front(keys=keys(numbers)) if config.num_layers else Front(embeddings=numbers)

    def keys(numbers: Tensor) -> LayerKeys:
        return tuner.keys(as_computed(numbers, fresh.model.dtype))

    def make(prompts: Sequence[Sequence[int]]) -> Tensor | LayerKeys:
        features = tuner.reader()(prompts, alone=tuner.training)
        with torch.autocast(fresh.model.device.type, enabled=False):
            numbers = tuner.network(features, _noise(tuner, prompts))
        return keys(numbers) if config.num_layers else numbers

    place = FRONT if config.front else len(config.tail)
    inserts = Inserts(config.num_generated, place, make, keys=config.num_layers > 0)
    model = CausalModel(peft.base_model.model, front, inserts=inserts)
    tuner.reader().count_for(model)
    return Tuned(model, peft, peft)


def _noise(tuner: Any, prompts: Sequence[Sequence[int]]) -> Tensor | None:
    """(B, z) random numbers: new ones at every training pass, those that belong to a prompt at every other."""
    size, device = tuner.network.noise, tuner.network.start.device
    if not size:
        return None
    if tuner.training:
        return torch.randn(len(prompts), size).to(device)
    rows = [np.random.default_rng(stream_key(0, p, 0)).standard_normal(size) for p in prompts]
    return torch.tensor(np.stack(rows), dtype=torch.float32, device=device)
