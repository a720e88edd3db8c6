"""The recipe of a pretraining: which architecture or base, which tokenizer, which texts, which objective, how long.

Read and checked as the recipe of a comparison is (`recipe.py`): every mistake is one `RecipeError` line with file,
line, field and mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kamerton.recipe import BudgetSpec
from kamerton.recipe_scaling import ScalingSpec
from kamerton.recipe_source import Sourced, overridden, read_fields, validated
from kamerton.recipe_task import Count, Name, Part, Seed, not_bool
from kamerton.yaml_source import Source, text_keys

Share = Annotated[float, BeforeValidator(not_bool), Field(ge=0, lt=1)]
Positive = Annotated[float, BeforeValidator(not_bool), Field(gt=0, allow_inf_nan=False)]
Objective = Literal["causal", "masked", "translation"]


class ModelSpec(Part):
    """An architecture: a preset with a size, or with width, depth and heads.

    Attributes:
        preset: a name of `kamerton base show`.
        size: parameters (`10m`); width, depth and heads follow from it.
        dropout: of every layer; none: 0 for causal models, 0.1 for the others.
        config: further fields of transformers' configuration.
    """

    preset: Name
    size: Name | None = None
    width: Count | None = None
    depth: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    feed_forward: Count | None = None
    experts: Count | None = None
    active: Count | None = None
    tied: bool | None = None
    dropout: Share | None = None
    config: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "preset")


class DataSpec(Part):
    """The texts. For translation `train` and `held_out` are pairs of files, line for line: [source, target].

    Attributes:
        held_out: other texts, or the share of `train` that is held out; false: none.
        documents: what a document is: a text (a file, or a line of JSON), a line of it, or a paragraph.
        test: for translation: a pair of files that is translated at the end and judged by BLEU.
    """

    train: Name | tuple[Name, Name]
    held_out: Share | Name | tuple[Name, Name] | Literal[False] = 0.05
    documents: Literal["file", "line", "paragraph"] = "file"
    test: tuple[Name, Name] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "train")


class TrainingSpec(Part):
    """How a run is optimised; what is None follows from the preset (`pretraining/defaults.py`).

    Attributes:
        batch_size: contexts (for translation: pairs; for recurrent models: streams) in an optimiser step.
        max_tokens: tokens in one pass through the model; a larger step is accumulated.
        warmup: share of the budget over which the learning rate rises; `warmup_steps`: the same in steps.
        decay: share of the budget over which `warmup-stable-decay` falls.
        floor: the learning rate at the end, as a share of the peak.
        optimiser: `adamw`, or `muon` for the matrices of the layers and AdamW for the rest.
        average: decay of an exponential average of the weights, which is kept in their place; 0: none.
    """

    learning_rate: Positive | None = None
    schedule: Literal["cosine", "inverse-sqrt", "warmup-stable-decay", "constant"] | None = None
    warmup: Share | None = None
    warmup_steps: Count | None = None
    decay: Share = 0.2
    floor: Share = 0.0
    optimiser: Literal["adamw", "muon"] = "adamw"
    batch_size: Count = 32
    max_tokens: Count = 16384
    weight_decay: Annotated[float, BeforeValidator(not_bool), Field(ge=0)] = 0.1
    betas: tuple[Share, Share] | None = None
    clip: Positive = 1.0
    average: Share = 0.0
    validations: Count = 10
    patience: Count | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    label_smoothing: Share | None = None
    seed: Seed = 0


class MaskingSpec(Part):
    """How BERT's objective spoils its input: the share that is predicted, whole words or not, and pairs of segments."""

    share: Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False
    next_sentence: bool = True


class SamplesSpec(Part):
    """What the model is asked to go on from at every validation, and how."""

    prompts: tuple[str, ...] = ("",)
    tokens: Count = 100
    temperature: Annotated[float, BeforeValidator(not_bool), Field(ge=0)] = 0.8
    top_k: Count | None = None
    beams: Count = 4

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {} if data is True else data


class PretrainRecipe(Sourced):
    """A validated recipe of a pretraining; `error` places a complaint at its line."""

    name: Name
    model: ModelSpec | None = None
    base: Name | None = None
    tokenizer: Name | None = None
    data: DataSpec
    objective: Objective | None = None
    context: Count | None = None
    attention: Literal["context", "documents"] = "context"
    masking: MaskingSpec = MaskingSpec()
    budget: BudgetSpec | None = None
    training: TrainingSpec = TrainingSpec()
    samples: SamplesSpec | None = SamplesSpec()
    scaling: ScalingSpec | None = None
    output: Name | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.model is None) == (self.base is None):
            raise ValueError("a pretraining starts from a model or from a base; give one of the two")
        if self.model is not None and self.tokenizer is None:
            raise ValueError("a new model needs a tokenizer; give tokenizer: FOLDER, or tokenizer: bytes")
        if self.base is not None and self.tokenizer is not None:
            raise ValueError("a base has its tokenizer; leave tokenizer out")
        if self.budget is None and self.scaling is None:
            raise ValueError("the budget is missing; give budget: {tokens: 2_000_000}")
        return self


def as_pretrain_recipe(
    recipe: str | Path | Mapping[str, Any] | PretrainRecipe, overrides: Sequence[str] = (), *,
    source: Source | None = None, name: str = "pretraining",
) -> PretrainRecipe:  # fmt: skip
    """A recipe from its file, its content as a mapping, or as it is.

    Args:
        overrides: fields to set, as `["budget.tokens=1000"]` (the value is YAML); not for a recipe that was read.
        source, name: of a recipe that is given by its content.

    Raises:
        RecipeError: one line with file, line, field and mend.
    """
    if isinstance(recipe, PretrainRecipe):
        return recipe
    if isinstance(recipe, Mapping):
        raw: Any = text_keys(dict(recipe))
        source = source or Source()
        return _build(raw, overridden(raw, source, overrides) if overrides else source, name)
    path = Path(recipe)
    raw, source = read_fields(path, "start with: model, tokenizer, data, budget")
    return _build(raw, overridden(raw, source, overrides), path.stem)


def _build(raw: dict[str, Any], source: Source, name: str) -> PretrainRecipe:
    given = {"name": name, **raw}
    if given.get("samples") is False:
        given["samples"] = None
    return validated(PretrainRecipe, given, raw, source)
