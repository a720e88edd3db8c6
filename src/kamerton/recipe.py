"""The recipe: one YAML file that says which base, which task, which methods, over how many seeds, under which budget.

`load_recipe` reads and validates it. Every mistake is one `RecipeError` line,
`FILE:LINE: field.path: what is wrong; mend`. The recipe does not know which methods, metrics or embedded tasks exist,
nor which options a method has: the rooms above check those and report them at the right line through `Recipe.error`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kamerton.errors import RecipeError
from kamerton.recipe_overrides import take_recipes, use_local
from kamerton.recipe_source import Sourced, overridden, read_fields, validated
from kamerton.recipe_task import (
    Column,
    Count,
    DataSpec,
    Layout,
    LimitSpec,
    LocalSpec,
    Name,
    Part,
    Seconds,
    Seed,
    SplitSpec,
    TaskSpec,
    not_bool,
)
from kamerton.resources import CellResources
from kamerton.yaml_source import FieldPath, Source, text_keys

__all__ = [
    "BaseSpec",
    "BudgetSpec",
    "Column",
    "DataSpec",
    "EvaluationSpec",
    "ForgettingSpec",
    "Layout",
    "LimitSpec",
    "LocalSpec",
    "MethodSpec",
    "RaceSpec",
    "Recipe",
    "SamplingSpec",
    "SplitSpec",
    "TaskSpec",
    "TextSpec",
    "load_recipe",
]

GENERAL_PROMPTS = 24
"""How many general prompts the project has (evaluation/general_prompts.py)."""

MOST_SEEDS = 10_000
"""More are a slip of the hand, and each is a cell of every method."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")  # labels become folder names


def is_label(text: object) -> bool:
    """Whether a method's row can be called so: labels name folders."""
    return isinstance(text, str) and _LABEL.fullmatch(text) is not None


class BaseSpec(Part):
    """The base. `model` is `demo`, a hub id, a folder or a GGUF file; the base room finds out which."""

    model: Name = "demo"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    chat_template: str | None = None
    quantise: Literal["nf4"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "model")


class MethodSpec(Part):
    """One entry of `methods`. The options are not checked here; the methods room knows them.

    Attributes:
        name: the method's name.
        options: its options as the recipe gives them.
        label: unique in the comparison; names the method's folder and its row in the report.
        path: the field path of the options, for `Recipe.error((*spec.path, option), …)`.
    """

    name: Name
    options: dict[str, Any] = Field(default_factory=dict)
    label: str
    path: tuple[str | int, ...]


class BudgetSpec(Part):
    """What a method may spend on training, its search included; whichever ends first. None: not limited."""

    examples: Count | None = None
    tokens: Count | None = None
    steps: Count | None = None
    seconds: Seconds | None = None
    epochs: Seconds | None = None


class TextSpec(Part):
    """A general text: `path` is `embedded` or a file (`Recipe.resolve` it); a `hub` id takes precedence."""

    path: Name = "embedded"
    hub: Name | None = None
    config: Name | None = None
    split: Name = "train"
    column: Name = "text"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "path")


class ForgettingSpec(Part):
    """What forgetting is measured on: bytes of a general text, and how many of the project's general prompts."""

    text: TextSpec = TextSpec()
    bytes: Count = 16384
    prompts: Annotated[int, BeforeValidator(not_bool), Field(gt=0, le=GENERAL_PROMPTS)] = 16

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {} if data is True else data


class SamplingSpec(Part):
    """How answers are decoded; temperature 0 is greedy."""

    temperature: Annotated[float, BeforeValidator(not_bool), Field(ge=0)] = 0.0
    top_k: Count | None = None
    top_p: Annotated[float, BeforeValidator(not_bool), Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, BeforeValidator(not_bool), Field(ge=0, le=1)] | None = None


class EvaluationSpec(Part):
    """How the test set is run: tokens in one batch, who decodes, and decoding."""

    max_batch_tokens: Count = 8192
    backend: Literal["torch", "vllm"] = "torch"
    sampling: SamplingSpec = SamplingSpec()

    def decides(self) -> dict[str, Any]:
        """What of it decides a result; torch is not named, so that results from before there was another stand."""
        return self.model_dump(exclude={"backend"} if self.backend == "torch" else None)


class RaceSpec(Part):
    """How cells that are clearly behind are stopped early.

    Attributes:
        shares: of the first seed's training, where methods are compared before its end.
        alpha: chance of stopping the best method, over the whole race.
        seed_deviation: assumed standard deviation between seeds, as a share of the metric's range.
        curve_deviation: likewise between what methods gain over the whole of their training.
        look_cost: what a look during training may cost, as a share of what a method takes to train; where it is more,
            `shares` are left out.
    """

    shares: tuple[Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)], ...] = (0.25, 0.5)
    alpha: Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)] = 0.05
    seed_deviation: Annotated[float, BeforeValidator(not_bool), Field(ge=0, le=1)] = 0.02
    curve_deviation: Annotated[float, BeforeValidator(not_bool), Field(ge=0, le=1)] = 0.1
    look_cost: Annotated[float, BeforeValidator(not_bool), Field(ge=0)] = 0.1

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {} if data is True else data

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError("shares must rise; write shares: [0.25, 0.5]")
        return self


class Recipe(Sourced):
    """A validated recipe. `source` is its file; `text` is the file as given; `error` places a complaint at its line."""

    name: Name
    base: BaseSpec = BaseSpec()
    task: TaskSpec
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    budget: BudgetSpec = BudgetSpec()
    forgetting: ForgettingSpec | None = ForgettingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    race: RaceSpec | None = None
    resources: CellResources = CellResources()
    output: Name | None = None

    def error(self, path: FieldPath, message: str, *, mend: str | None = None) -> RecipeError:
        """An error at a field; of a method's, at where it stands below the method's name."""
        if len(path) > 2 and path[0] == "methods" and isinstance(path[1], int) and path[1] < len(self.methods):
            spec = self.methods[path[1]]
            if path[: len(spec.path)] != spec.path:
                path = (*spec.path, *path[2:])
        return super().error(path, message, mend=mend)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, name: str = "recipe", source: Source | None = None) -> Recipe:
        """A recipe from plain values, as YAML would give them.

        Args:
            source: relative paths start from its folder, by default from the current directory.

        Raises:
            RecipeError: a field is unknown, missing or wrong.
        """
        raw = text_keys(dict(data))
        return _build(raw, take_recipes(raw, source or Source()), name)


def as_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, data: str | Path | None = None) -> Recipe:
    """A recipe, or one from its content, or from its file (`load_recipe`; `data` is for that)."""
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.from_dict(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe, data=data)


def load_recipe(
    path: str | Path,
    *,
    data: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        data: a local copy of the task's data: a folder, in which the files that the recipe names under `data.local`
            (or else its `train`, `validation`, `test`, `path`) are looked up, or one file. Relative to the current
            directory.
        overrides: fields to set, as `{"budget.tokens": 1000}` or as `["budget.tokens=1000"]` (the value is YAML).

    Relative paths in the recipe start from its folder; see `Recipe.resolve`.

    Raises:
        RecipeError: one line with file, line, field and mend.
    """
    path = Path(path)
    raw, source = read_fields(path, "start with: task, methods", "write it as field: value, one a line")
    source = take_recipes(raw, overridden(raw, source, overrides))
    if data is not None:
        source = use_local(raw, source, Path(data))
    return _build(raw, source, path.stem)


def _build(raw: dict[str, Any], source: Source, name: str) -> Recipe:
    given = {"name": name, **raw}
    if "methods" in given:
        given["methods"] = _methods(given["methods"], source)
    if isinstance(given.get("seeds"), int) and not isinstance(given["seeds"], bool):
        if given["seeds"] < 1:
            where = source.where(("seeds",))
            raise RecipeError(f"must be at least 1, not {given['seeds']}", where=where, mend="write seeds: 3")
        if given["seeds"] > MOST_SEEDS:
            message, where = f"must be at most {MOST_SEEDS:,}, not {given['seeds']:.3g}", source.where(("seeds",))
            raise RecipeError(message, where=where, mend="write seeds: 3")
        given["seeds"] = list(range(given["seeds"]))
    elif "seeds" in given and not isinstance(given["seeds"], list):
        message, where = f"must be a count or a list of whole numbers, not {given['seeds']!r}", source.where(("seeds",))
        raise RecipeError(message, where=where, mend="write seeds: 3, or seeds: [0, 1, 2]")
    for switch in ("forgetting", "race"):
        if given.get(switch) is False:
            given[switch] = None
    recipe = validated(Recipe, given, raw, source)
    if not recipe.seeds or len(set(recipe.seeds)) != len(recipe.seeds):
        message = "is empty" if not recipe.seeds else "has a seed twice"
        raise RecipeError(message, where=source.where(("seeds",)), mend="list different seeds, such as [0, 1, 2]")
    recipe.task.place(source, ("task",))
    return recipe


def _methods(entries: object, source: Source) -> list[dict[str, Any]]:
    """Each entry as {name, options, label, path}; a label that is used twice is an error."""
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise RecipeError("must be a list", where=source.where(("methods",)), mend="write one method a line: - lora")
    methods: list[dict[str, Any]] = []
    taken: dict[str, int] = {}
    for index, entry in enumerate(entries):
        path: FieldPath = ("methods", index)
        options: object
        if isinstance(entry, str):
            name, options = entry, {}
        elif isinstance(entry, Mapping) and len(entry) == 1:
            name, options = next(iter(entry.items()))
            path, options = (*path, name), {} if options is None else options
        else:
            shape = f"has {len(entry)} names" if isinstance(entry, Mapping) else "is not a method"
            mend = "write - name, or - name: {option: value}, and indent the options below the name"
            raise RecipeError(shape, where=source.where(path), mend=mend)
        if not isinstance(options, Mapping):
            mend = f"write - {name}: {{option: value}}"
            raise RecipeError("options must be a mapping", where=source.where(path), mend=mend)
        options = dict(options)
        given = "label" in options
        label = str(options.pop("label", name))
        place = source.where((*path, "label") if given else path)
        if not _LABEL.fullmatch(label):
            mend = "use letters, digits and . _ + = - (it names a folder)"
            raise RecipeError(f"label {label!r} cannot name a folder", where=place, mend=mend)
        if label.casefold() in taken:
            message = f"label {label!r} is taken by methods.{taken[label.casefold()]}"
            raise RecipeError(message, where=place, mend=f"give this one its own: - {name}: {{label: {label}-2}}")
        taken[label.casefold()] = index
        methods.append({"name": name, "options": options, "label": label, "path": path})
    return methods
