"""The recipe of a whole path: raw files → corpus → tokenizer → n-grams → networks → instruction tuning → chat.

Each block is the recipe of the single command (`kamerton corpus`, `pretrain`, `tune`) or its options (`tokenizer`,
`ngram`), without what the path itself knows: where the text is, which tokenizer, which base. Blocks are checked before
anything is computed, and every mistake is one line of this recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kamerton.errors import RecipeError
from kamerton.recipe import BudgetSpec, Recipe
from kamerton.recipe_errors import closest
from kamerton.recipe_overrides import use_local
from kamerton.recipe_pretrain import PretrainRecipe, as_pretrain_recipe
from kamerton.recipe_source import Sourced, overridden, read_fields, validated
from kamerton.recipe_task import Count, Name, Names, Part, Seed, not_bool
from kamerton.text.corpus.recipe import CorpusRecipe
from kamerton.yaml_source import FieldPath, Source, text_keys

TAKEN = ("corpus", "text", "tokenizer", "turns", "tuned", "chat", "stages")
"""Names of folders that are no model's."""
LOSSY = ("words", "wordpiece", "bpe")
"""Kinds of tokenizers that do not give every text back: they forget spaces, or know no end of a line."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # names become folder names


class HeldOutSpec(Part):
    """The text that judges every model, and that none learns from.

    Attributes:
        share: of many documents so many whole ones, of a single one its end.
        words: a passage of training text that shares so many words in a row with held-out text is left out.
    """

    share: Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)] = 0.1
    words: Count = 13

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {"share": data} if isinstance(data, (int, float)) and not isinstance(data, bool) else data


class TokenizerSpec(Part):
    """Options of `kamerton tokenizer train`."""

    kind: Literal["byte-bpe", "bpe", "wordpiece", "unigram", "words"] = "byte-bpe"
    vocab_size: Count = 1024
    split_digits: bool = False
    special: Names = ()
    chat_template: Name = "chatml"


class NgramSpec(Part):
    """Options of `kamerton ngram train`; `tokens`: `tokenizer` (the path's own) or `bytes`, for both lose nothing."""

    order: Annotated[int, BeforeValidator(not_bool), Field(ge=1, le=12)] = 5
    tokens: Literal["tokenizer", "bytes"] = "tokenizer"
    smoothing: Literal["kneser-ney", "katz", "mle"] = "kneser-ney"
    memory: Count = 1024


class TurnsSpec(Part):
    """Conversations that are made of the corpus: each passage is answered by the one behind it.

    Attributes:
        separator: cuts a document into passages.
        speaker: a regular expression that a passage has to begin with; others end a conversation. None: all passages.
        most_characters, fewest_characters: of a passage; longer or shorter ones end a conversation.
        turns: passages in a conversation, at most; an even number.
        validation: share of the training conversations that validates.
    """

    separator: Annotated[str, Field(min_length=1)] = "\n\n"
    speaker: Name | None = None
    most_characters: Count = 200
    fewest_characters: Count = 1
    turns: Annotated[int, BeforeValidator(not_bool), Field(ge=2, le=20, multiple_of=2)] = 2
    validation: Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)] = 0.05

    @model_validator(mode="after")
    def _a_pattern(self) -> Self:
        try:
            re.compile(self.speaker or "")
        except re.error as error:
            raise ValueError(f"speaker is no regular expression ({error}); mend it, or leave it out") from None
        return self


class ChatSpec(Part):
    """What the tuned model is asked for the page, and how it answers."""

    prompts: tuple[Name, ...] = ()
    tokens: Count = 60
    temperature: Annotated[float, BeforeValidator(not_bool), Field(ge=0)] = 0.7
    top_p: Annotated[float, BeforeValidator(not_bool), Field(gt=0, le=1)] = 0.95
    seed: Seed = 0


class _Fields(Sourced):
    """The fields of the recipe, its blocks as they were written."""

    name: Name
    corpus: dict[str, Any]
    held_out: HeldOutSpec = HeldOutSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    ngrams: dict[str, NgramSpec] = Field({"5-gram": NgramSpec()})
    budget: BudgetSpec | None = None
    models: dict[str, dict[str, Any]] = Field(min_length=1)
    turns: TurnsSpec | None = None
    tune: dict[str, Any] | None = None
    chat: ChatSpec = ChatSpec()
    output: Name | None = None

    @model_validator(mode="after")
    def _something_to_tune_on(self) -> Self:
        if self.turns is not None and self.tune is None:
            raise ValueError("turns are for tuning; add tune: {methods: [full]}, or leave turns out")
        if self.tune is not None and self.turns is None and not isinstance(self.tune.get("task"), (dict, str)):
            raise ValueError("tuning needs examples; add turns: {} or tune: {task: {data: FILE}}")
        return self


@dataclass(frozen=True)
class FromScratch:
    """A validated recipe.

    Attributes:
        fields: what stands in it, `error` among them.
        folder: of results; each stage has its own in it.
        corpus, models, tune: the recipes of single commands that its blocks stand for.
        base: the model that is tuned, by its name.
    """

    fields: _Fields
    folder: Path
    corpus: CorpusRecipe
    models: dict[str, PretrainRecipe]
    tune: Recipe | None
    base: str

    @property
    def name(self) -> str:
        return self.fields.name


def load_from_scratch(
    recipe: str | Path | Mapping[str, Any], *, output: str | Path | None = None, data: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> FromScratch:  # fmt: skip
    """Read and check a recipe, every block of it.

    Args:
        recipe: the YAML file, or its content.
        output: the folder of results; default: the recipe's, else `runs/NAME`.
        data: the folder that relative paths of the corpus (and of the tuning's examples) start from.
        overrides: fields to set, as `["models.llama.budget.tokens=100000"]`.

    Raises:
        RecipeError: one line with file, line, field and mend.
    """
    if isinstance(recipe, Mapping):
        raw: Any = text_keys(dict(recipe))
        source, name = Source(), "from-scratch"
    else:
        raw, source = read_fields(Path(recipe), "start with: corpus, models")
        name = Path(recipe).stem
    source = overridden(raw, source, overrides) if overrides else source
    given = {"name": name, **raw}
    if given.get("tune") is False:
        given = {k: v for k, v in given.items() if k not in ("tune", "turns")}
    fields = validated(_Fields, given, raw, source)
    folder = Path(output or fields.output or Path("runs") / fields.name).resolve()
    _check_names(fields)
    _check_tokenizer(fields)
    corpus = CorpusRecipe.from_dict(fields.corpus, name=fields.name, source=source.inside(("corpus",)), folder=data)
    models = {one: _model(fields, one, block, source, folder) for one, block in fields.models.items()}
    tune, base = _tune(fields, source, folder, data)
    return FromScratch(fields, folder, corpus, models, tune, base)


def _check_names(fields: _Fields) -> None:
    seen: set[str] = set()
    for group in ("ngrams", "models"):
        for one in getattr(fields, group):
            if not _NAME.fullmatch(one) or one in TAKEN:
                mend = "use letters, digits and . _ + - (it names a folder)"
                raise fields.error((group, one), "cannot name a model", mend=mend)
            if one.casefold() in seen:
                mend = "give it another name (upper and lower case are the same: it names a folder)"
                raise fields.error((group, one), "is there twice", mend=mend)
            seen.add(one.casefold())


def _check_tokenizer(fields: _Fields) -> None:
    """A path compares models by bits per byte, so its tokenizer has to give the text back."""
    kind = fields.tokenizer.kind
    if kind in LOSSY:
        what = f"{kind} does not give every text back, so models would have no bits per byte"
        raise fields.error(("tokenizer", "kind"), what, mend="use byte-bpe or unigram")


def _known(fields: _Fields, path: FieldPath, block: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    for one in names:
        if one in block:
            raise fields.error((*path, one), f"{one} is {what}", mend="leave it out")


def _model(fields: _Fields, name: str, block: dict[str, Any], source: Source, folder: Path) -> PretrainRecipe:
    from kamerton.base.presets import get_preset

    path: FieldPath = ("models", name)
    _known(fields, path, block, ("data", "output"), "the path's own here")
    shared = {} if fields.budget is None else {"budget": fields.budget.model_dump(exclude_none=True)}
    text = {"train": str(folder / "text" / "train.jsonl"), "held_out": str(folder / "text" / "held_out.jsonl")}
    own = {} if "base" in block else {"tokenizer": str(folder / "tokenizer")}
    made = as_pretrain_recipe({**shared, **own, "name": name, "data": text, **block}, source=source.inside(path))
    if made.tokenizer not in (None, "bytes", str(folder / "tokenizer")):
        mend = "leave it out, or write tokenizer: bytes"
        raise fields.error((*path, "tokenizer"), "another tokenizer than the path's", mend=mend)
    if made.model is not None:
        try:
            preset = get_preset(made.model.preset)
        except RecipeError as error:
            raise fields.error((*path, "model", "preset"), error.message, mend=error.mend) from None
        if preset.kind != "causal":
            mend = "choose a causal preset: llama, gpt2, lstm, …"
            raise fields.error((*path, "model", "preset"), f"{preset.name} has no bits per byte", mend=mend)
    return made


def _tune(fields: _Fields, source: Source, folder: Path, data: str | Path | None) -> tuple[Recipe | None, str]:
    last = list(fields.models)[-1]
    if fields.tune is None:
        return None, last
    block, inside = dict(fields.tune), source.inside(("tune",))
    given = block.pop("base", last)
    options = dict(given) if isinstance(given, Mapping) else {"model": given}
    name = str(options.get("model", last))
    if name not in fields.models:
        raise fields.error(("tune", "base"), f"no model {name!r} in this path", mend=closest(name, fields.models))
    if fields.turns is not None:
        task = dict(block.get("task") or {})
        _known(
            fields, ("tune", "task"), task, ("data", "embedded", "mixture"), "made of the corpus where turns are given"
        )
        files = {split: str(folder / "turns" / f"{split}.jsonl") for split in ("train", "validation", "test")}
        block["task"] = {"name": "turns", **task, "data": files}
    elif data is not None:
        inside = use_local(block, inside, Path(data))
    block["base"] = {"dtype": "float32", **options, "model": str(folder / name)}
    recipe = Recipe.from_dict({"forgetting": False, "seeds": 1, **block}, name=f"{fields.name}-tune", source=inside)
    if len(recipe.methods) != 1:
        raise fields.error(("tune", "methods"), f"a path has one method, not {len(recipe.methods)}", mend="keep one")
    from kamerton.methods import resolve

    resolve(recipe)
    return recipe, name
