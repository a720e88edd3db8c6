"""What `kamerton base show` prints: a model's shape, parameters, arithmetic and memory, known without building it.

Parameters are counted on a model of the meta device (shapes, no numbers), FLOPs by the same function that counts them
in training (`work.py`). Memory to train is the sum of what can be known beforehand: 16 bytes for each parameter
(weight, gradient and two moments in float32), and what the layers keep for the backward pass of one sequence of the
full context, 34 bytes for each token and unit of width in each layer in float16 (Korthikanti et al. 2022, arXiv
2205.05198, attention matrices not kept), taken twice for float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kamerton.base.presets import PRESETS, Preset, Shape, build, get_preset, parameters
from kamerton.base.published import PUBLISHED, Published
from kamerton.base.sizing import fitted, read_size, shape_of
from kamerton.base.work import Work, flops
from kamerton.errors import RecipeError
from kamerton.recipe_errors import closest

DEFAULT_SIZE = 10_000_000
ADAM_BYTES = 16
KEPT = 68
"""Bytes that a layer of a transformer keeps for each token and unit of width, in float32."""


@dataclass(frozen=True)
class Account:
    """A model that was not built.

    Attributes:
        preset, shape: what it is.
        architecture: the transformers class.
        parameters: numbers that are learned; `embedding` those of the tokens' embedding, `active` those that a token
            goes through (fewer only in a mixture of experts).
        forward, training: FLOPs for a token at the full context, mean over its positions; training with the backward
            pass. Of an encoder–decoder: for a token of an answer, with a token of a prompt as long as it.
        state_bytes: weights, gradients and optimiser in float32.
        activation_bytes: kept for one sequence of the full context.
        published: what its authors say, where it is a published one.
    """

    preset: Preset
    shape: Shape
    architecture: str
    parameters: int
    embedding: int
    active: int
    forward: float
    training: float
    state_bytes: int
    activation_bytes: int
    published: Published | None = None


def account(name: str, size: str | int | None = None, **given: Any) -> Account:
    """A preset or published model in numbers.

    Args:
        name: of a preset or a published model.
        size: parameters (`10m`), for a preset.
        given: fields of `Shape` that replace what is picked (`vocabulary`, `context`, `width`, …).

    Raises:
        RecipeError: no such name, or a size for a published model.
    """
    given = {k: v for k, v in given.items() if v is not None}
    if name in PUBLISHED:
        if size is not None:
            raise RecipeError(f"{name} has its size already", where="--size", mend=f"use {PUBLISHED[name].preset}")
        found = PUBLISHED[name]
        preset, shape = PRESETS[found.preset], replace(found.shape, **given)
        return measured(preset, shape, found if not given else None)
    if name not in PRESETS:
        raise RecipeError(f"no preset or model '{name}'", mend=closest(name, [*PRESETS, *PUBLISHED]))
    preset = get_preset(name)
    return measured(preset, chosen_shape(preset, size, given))


def chosen_shape(preset: Preset, size: str | int | None, given: dict[str, Any]) -> Shape:
    """The shape of a size, or of a width that is given; what else is given stands as it is.

    Raises:
        RecipeError: both a size and a width or depth, or heads that do not divide the width.
    """
    rest = dict(given)
    vocabulary, context = rest.pop("vocabulary", preset.vocabulary), rest.pop("context", preset.context)
    if size is not None and ("width" in rest or "depth" in rest):
        mend = "leave size out, or width and depth"
        raise RecipeError("size and width or depth are given together", where="size", mend=mend)
    if "width" in rest:
        shape = replace(shape_of(rest["width"], vocabulary, context, recurrent=preset.recurrent), **rest)
    else:
        wanted = read_size(size) if size is not None else DEFAULT_SIZE
        shape = fitted(preset, wanted, vocabulary, context, **rest)
    if not preset.recurrent:
        for heads, over in ((shape.heads, shape.width), (shape.kv_heads or shape.heads, shape.heads)):
            if heads < 1 or over % heads:
                mend = "choose a number of heads that divides it"
                raise RecipeError(f"{heads} heads do not divide {over}", where="heads", mend=mend)
    return shape


def measured(preset: Preset, shape: Shape, published: Published | None = None) -> Account:
    """The account of a shape."""
    hf = build(preset.config(shape, {}), preset.kind, meta=True)
    count = parameters(hf)
    text = hf.model.language_model if hf.config.model_type == "llava" else hf
    forward, training = flops_per_token(hf)
    inactive = sum(p.numel() for p in text.parameters() if p.ndim == 3 and p.shape[0] == shape.experts)
    layers = shape.depth * (2 if preset.kind == "encoder-decoder" else 1)
    return Account(
        preset, shape, type(hf).__name__, count, hf.get_input_embeddings().weight.numel(),
        count - round(inactive * (1 - shape.active / shape.experts)), forward, training, ADAM_BYTES * count,
        KEPT * layers * shape.context * shape.width, published,
    )  # fmt: skip


def flops_per_token(hf: Any) -> tuple[float, float]:
    """FLOPs a token at the full context, forward and with the backward pass, of a transformers model (meta or not)."""
    model, config = hf, hf.config.get_text_config()
    if hf.config.model_type == "llava":  # for a token of text
        import transformers

        model = build(transformers.LlamaConfig(**hf.config.text_config.to_dict()), "causal", meta=True)
    n = getattr(config, "max_position_embeddings", None) or 1
    if getattr(config, "is_encoder_decoder", False):
        pairs = n * (n + 1) // 2 + n * n
        done = Work(tokens=n, pairs=pairs, outputs=n, encoder_tokens=n, encoder_pairs=n * n, memory=n)
        trained = replace(
            done, grad_tokens=done.tokens, grad_pairs=done.pairs, grad_outputs=n, grad_encoder_tokens=n,
            grad_encoder_pairs=done.encoder_pairs, grad_memory=n,
        )  # fmt: skip
    else:
        both = model.config.model_type == "bert"  # a token sees those behind it too
        pairs = 0 if config.model_type.startswith("kamerton-recurrent") else n * n if both else n * (n + 1) // 2
        done = Work(tokens=n, pairs=pairs, outputs=n)
        trained = replace(done, grad_tokens=n, grad_pairs=pairs, grad_outputs=n)
    return flops(done, model) / n, flops(trained, model) / n


def human(value: float) -> str:
    """A count with three digits and a unit: 1.23 M."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.0f}"


def lines(a: Account) -> list[tuple[str, str]]:
    """The account as (what, value) rows for people."""
    s = a.shape
    heads = "" if a.preset.recurrent else f", {s.heads} heads of {s.width // max(s.heads, 1)}"
    if s.kv_heads and s.kv_heads != s.heads:
        heads += f" ({s.kv_heads} of keys and values)"
    depth = f"{s.depth} + {s.depth} layers" if a.preset.kind == "encoder-decoder" else f"{s.depth} layers"
    rows = [
        ("preset", f"{a.preset.name}: {a.preset.summary}"),
        ("paper", a.preset.paper),
        ("class", a.architecture),
        ("shape", f"width {s.width}, {depth}{heads}"),
        ("vocabulary", f"{s.vocabulary:,} tokens"),
        ("context", f"{s.context:,} positions"),
    ]
    if a.preset.name == "moe":
        rows.append(("experts", f"{s.experts}, {s.active} for each token"))
    share = f"{a.embedding / a.parameters:.0%}"
    rows.append(("parameters", f"{a.parameters:,} ({human(a.parameters)}; embedding of tokens {share})"))
    if a.active != a.parameters:
        rows.append(("active", f"{a.active:,} ({human(a.active)}) for each token"))
    if a.published is not None:
        off = a.parameters / a.published.parameters - 1
        note = f"; {a.published.note}" if a.published.note else ""
        rows.append(("published", f"{human(a.published.parameters)} ({a.published.source}), {off:+.1%} here{note}"))
    rows += [
        ("FLOPs a token", f"{human(a.forward)} forward, {human(a.training)} to train, at the full context"),
        ("memory to train", f"{_bytes(a.state_bytes)} for weights, gradients and Adam in float32, and "
         f"about {_bytes(a.activation_bytes)} for each sequence of the full context"),
    ]  # fmt: skip
    return rows


def _bytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
