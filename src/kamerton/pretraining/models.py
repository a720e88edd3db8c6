"""The model of a recipe: a preset in a size for a tokenizer, or a base that is trained further; and what suits it.

Defaults are those of the papers: the original encoder–decoder's Adam with β₂ 0.98, 4,000 steps of warm-up and the
inverse square root behind them; BERT's and GPT's linear rise; a higher learning rate for smaller models, by the line
0.003 · (1 M / parameters)^0.25 between 0.0002 and 0.005, which lies within a factor of two of GPT-3's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kamerton.base.encoder_decoder import model_for
from kamerton.base.load import load_base
from kamerton.base.model import LanguageModel
from kamerton.base.padded import PaddedModel
from kamerton.base.presets import Kind, Preset, Shape, build, get_preset, parameters
from kamerton.base.show import chosen_shape
from kamerton.errors import KamertonError, RecipeError
from kamerton.pretraining.tokens import end_of, read_tokenizer
from kamerton.recipe_pretrain import PretrainRecipe, TrainingSpec
from kamerton.training.loop import Settings

CONTEXT = 256
PADDED = "openai-gpt"
"""The architecture that is trained on padded rows, because it cannot be computed through packs: no base for others."""


@dataclass
class Started:
    """A model before its first step.

    Attributes:
        model: in float32, on the CPU or the first GPU.
        tokenizer: its tokenizer; `end` the id between documents.
        kind: what it is trained to do.
        preset: the preset's name, None for a base.
        context: tokens that are read at once.
        parameters: numbers that are learned.
        notes: what the user should know.
    """

    model: Any
    tokenizer: Any
    end: int
    kind: Kind
    preset: str | None
    context: int
    parameters: int
    notes: list[str]


def start(recipe: PretrainRecipe) -> Started:
    """Build the recipe's model with fresh weights, or load its base.

    Raises:
        RecipeError: the recipe asks for what does not fit together.
        ModelError: the base cannot be loaded.
    """
    return _from_base(recipe) if recipe.base is not None else _from_preset(recipe)


def _from_base(recipe: PretrainRecipe) -> Started:
    assert recipe.base is not None
    beside = recipe.resolve(recipe.base)
    base = load_base(beside if beside.is_dir() else recipe.base, dtype="float32")
    model, tokenizer = base.model, base.renderer.tokenizer
    if model.encoder_decoder or model.encoder:
        mend, kind = "use a causal base", "an encoder" if model.encoder else "an encoder–decoder"
        raise recipe.error(("base",), f"going on from {kind} is not supported", mend=mend)
    context = recipe.context or min(CONTEXT, model.max_length or CONTEXT)
    if model.max_length is not None and context > model.max_length:
        mend = f"use at most {model.max_length}"
        raise recipe.error(("context",), f"a context of {context} is longer than the base's positions", mend=mend)
    if recipe.objective not in (None, "causal"):
        raise recipe.error(("objective",), f"a causal base cannot learn {recipe.objective}", mend="leave it out")
    model.hf.requires_grad_(True)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else base.renderer.end_id
    return Started(model, tokenizer, int(end), "causal", None, context, parameters(model.hf), [])


@dataclass(frozen=True)
class Plan:
    """A new model that was not built yet: its preset, shape and configuration, its tokenizer and its context."""

    preset: Preset
    shape: Shape
    config: Any
    tokenizer: Any
    context: int


def plan(recipe: PretrainRecipe, tokenizer: Any = None) -> Plan:
    """The model that a recipe's preset asks for.

    Args:
        tokenizer: the recipe's, where it was read already.

    Raises:
        RecipeError: the recipe asks for what does not fit together.
    """
    spec = recipe.model
    assert spec is not None
    assert recipe.tokenizer is not None
    try:
        preset = get_preset(spec.preset)
    except RecipeError as error:
        raise recipe.error(("model", "preset"), error.message, mend=error.mend) from None
    asked = {"causal": "causal", "masked": "masked", "translation": "encoder-decoder"}
    if recipe.objective is not None and asked[recipe.objective] != preset.kind:
        mend = "leave objective out, or choose another preset"
        raise recipe.error(("objective",), f"{preset.name} cannot learn {recipe.objective}", mend=mend)
    if preset.name == "llava":
        mend = "use llama; the multimodal shape is shown by kamerton base show llava"
        raise recipe.error(("model", "preset"), "training on images is not supported", mend=mend)
    if tokenizer is None:
        beside = recipe.resolve(recipe.tokenizer)
        tokenizer = read_tokenizer(beside if beside.is_dir() else recipe.tokenizer)
    context = recipe.context or CONTEXT
    shape = shape_of(recipe, preset, len(tokenizer))
    end, pad = end_of(tokenizer), tokenizer.pad_token_id
    special = {"eos_token_id": end, "bos_token_id": None, "pad_token_id": end if pad is None else pad}
    config = preset.config(shape, special)
    _set(recipe, config, preset.kind)
    _check_fit(recipe, config, context, len(tokenizer))
    return Plan(preset, shape, config, tokenizer, context)


def _from_preset(recipe: PretrainRecipe) -> Started:
    made = plan(recipe)
    kind, end = made.preset.kind, end_of(made.tokenizer)
    torch.manual_seed(recipe.training.seed)
    hf = build(made.config, kind)
    if torch.cuda.is_available():
        hf = hf.to("cuda")
    return Started(as_trained(hf, kind), made.tokenizer, end, kind, made.preset.name, made.context, parameters(hf), [])


def shape_of(recipe: PretrainRecipe, preset: Preset, vocabulary: int) -> Shape:
    """The shape that a recipe asks for, with so many tokens.

    Raises:
        RecipeError: it is none, at its field.
    """
    spec = recipe.model
    assert spec is not None
    given = {name: getattr(spec, name) for name in ("width", "depth", "heads", "kv_heads", "feed_forward", "experts",
                                                    "active", "tied")}  # fmt: skip
    given = {k: v for k, v in given.items() if v is not None}
    given |= {"vocabulary": vocabulary, "context": recipe.context or CONTEXT}
    try:
        return chosen_shape(preset, spec.size, given)
    except RecipeError as error:
        field = ("model", error.where) if error.where in ("size", "heads") else ("model",)
        raise recipe.error(field, error.message, mend=error.mend) from None


def as_trained(hf: Any, kind: Kind) -> LanguageModel:
    """A transformers model as what its kind is trained through."""
    if kind == "masked":
        from kamerton.base.masked_model import MaskedModel

        return MaskedModel(hf)
    return PaddedModel(hf) if hf.config.model_type == PADDED else model_for(hf)


_DROPOUT = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob",
            "attention_probs_dropout_prob")  # fmt: skip


def _set(recipe: PretrainRecipe, config: Any, kind: Kind) -> None:
    spec = recipe.model
    assert spec is not None
    rate = spec.dropout if spec.dropout is not None else 0.0 if kind == "causal" else 0.1
    for name in _DROPOUT:
        if hasattr(config, name):
            # the original encoder–decoder has none on its attention weights
            setattr(config, name, 0.0 if kind == "encoder-decoder" and name == "attention_dropout" else rate)
    for name, value in spec.config.items():
        if not hasattr(config, name):
            message = f"{type(config).__name__} has no field {name!r}"
            raise recipe.error(("model", "config", name), message, mend="see transformers' documentation of it")
        try:
            setattr(config, name, value)
        except Exception as error:  # transformers raises many kinds; every one is about what the user gave
            reason = " ".join(str(error).split())[:160]
            mend = "see transformers' documentation of it"
            raise recipe.error(("model", "config", name), f"cannot be {value!r} ({reason})", mend=mend) from None


def _check_fit(recipe: PretrainRecipe, config: Any, context: int, tokens: int) -> None:
    """Refuse fields of `model.config` that leave too few positions for the context, or rows for the tokens.

    Raises:
        RecipeError: they do.
    """
    assert recipe.model is not None
    wanted = {"max_position_embeddings": ("positions", context), "vocab_size": ("tokens", tokens)}
    for field, (what, least) in wanted.items():
        own = getattr(config, field, None)  # transformers maps it to the name that the class has
        if own is None or (isinstance(own, int) and own >= least):
            continue
        name = config.attribute_map.get(field, field)
        given = name if name in recipe.model.config else field
        if not isinstance(own, int):
            raise recipe.error(
                ("model", "config", given), f"{own!r} is no whole number", mend="give one, or leave it out"
            )
        of = f"the context is {context:,}" if what == "positions" else f"the tokenizer has {tokens:,}"
        mend = f"leave it out, or give at least {least:,}"
        mend += f", or context: {own}" if what == "positions" and own > 1 else ""
        raise recipe.error(("model", "config", given), f"{own:,} {what} are too few: {of}", mend=mend)


def settings(recipe: PretrainRecipe, started: Started) -> Settings:
    """The recipe's training options, with what suits the model where it names none."""
    t: TrainingSpec = recipe.training
    original = started.preset == "transformer"
    rate = t.learning_rate
    if rate is None and original:  # d^-0.5 · warmup^-0.5, the peak of the paper's formula
        rate = (started.model.config.d_model * (t.warmup_steps or 4000)) ** -0.5
    elif rate is None:
        rate = min(max(3e-3 * (1e6 / started.parameters) ** 0.25, 2e-4), 5e-3)
        rate = rate if started.preset is not None else rate / 10  # a base has learned already
    steps = t.warmup_steps if t.warmup_steps is not None or t.warmup is not None or not original else 4000
    betas = t.betas or ((0.9, 0.98) if original else (0.9, 0.95))
    head = started.model.hf.get_output_embeddings()
    for name, parameter in started.model.hf.named_parameters():
        # gains, biases and embeddings stay out of weight decay
        if parameter.ndim < 2 or "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
            parameter.decays = False
        else:  # Muon is for what stands between embeddings and output
            parameter.matrix = parameter.ndim == 2 and (head is None or parameter is not head.weight)
    return Settings(
        learning_rate=rate, warmup=0.05 if t.warmup is None else t.warmup, warmup_steps=steps,
        schedule=t.schedule or ("inverse-sqrt" if original else "cosine"), decay=t.decay, floor=t.floor,
        optimiser=t.optimiser, weight_decay=t.weight_decay, betas=betas, clip=t.clip, average=t.average,
        validations=t.validations, patience=t.patience or t.validations + 1, bfloat16=t.dtype == "bfloat16",
        seed=t.seed,
    )  # fmt: skip


def check_room(recipe: PretrainRecipe, tokens: int, context: int) -> None:
    """Refuse a corpus that is smaller than one context.

    Raises:
        KamertonError: it is.
    """
    if tokens <= context:
        raise KamertonError(
            f"the corpus has {tokens:,} tokens, fewer than one context of {context:,}",
            where=recipe.source or "data", mend="give more text, or a shorter context",
        )  # fmt: skip
