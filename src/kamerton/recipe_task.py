"""The part of a recipe that describes the task: where the examples are, how they are laid out, asked and judged.

Field names are Kamerton's own, plain ones; `columns` maps them to what a file calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from kamerton.errors import KamertonError, RecipeError, TaskError
from kamerton.files import expanded
from kamerton.yaml_source import FieldPath, Source


def not_bool(value: object) -> object:
    """Refuse `true` where a number is meant; pydantic would read it as 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false; write the number")
    return value


def _text(value: object) -> object:
    """Numbers written without quotes where text is meant: a column index, a label."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _labels(value: object) -> object:
    if value != "auto" and not isinstance(value, (Mapping, list, tuple)):
        raise ValueError("must be auto, a list of labels, or a mapping; write labels: {value: readable name}")
    return value


def listed(value: object) -> object:
    """A single value where a list is meant, as a list of one."""
    return [value] if isinstance(value, (str, int, float, Mapping)) and not isinstance(value, bool) else value


Count = Annotated[int, BeforeValidator(not_bool), Field(gt=0)]
Seed = Annotated[int, BeforeValidator(not_bool), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(not_bool), Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(listed)]


class Part(BaseModel):
    """A piece of a recipe: unknown fields are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @staticmethod
    def _short(data: object, name: str) -> object:
        """The short form: a bare value stands for a mapping with one field."""
        return {name: data} if isinstance(data, (str, int)) and not isinstance(data, bool) else data


class Column(Part):
    """Where a field's value comes from in the file.

    `source` (written `from`) is one column, or several, which makes a list. `pattern` keeps the first group of a
    regular expression (or its whole match), `remove` deletes what matches, `split` cuts the text into a list.
    """

    source: Names = Field(alias="from")
    pattern: str | None = None
    remove: str | None = None
    split: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {"from": data} if isinstance(data, (str, int, list)) and not isinstance(data, bool) else data


class SplitSpec(Part):
    """How splits that are not given are cut: fractions below 1, or counts; `by` names a column that stays together."""

    validation: Annotated[float, BeforeValidator(not_bool), Field(gt=0)] = 0.1
    test: Annotated[float, BeforeValidator(not_bool), Field(gt=0)] = 0.1
    seed: Seed = 0
    by: Name | None = None


class LimitSpec(Part):
    """At most this many examples of each split, sampled deterministically."""

    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None


class Layout(Part):
    """How the records of a data set are laid out, which may differ between the hub and local copies of the same set.

    Attributes:
        format: of the files; `auto` goes by the suffix, and `.gz` may follow it. `lines` needs `pattern`; `conll` has
            a word and its tags a line, and an empty line behind each sentence.
        reader: a layout by name (`squad`, `squad-answerable`, `snips`, `bio`, `hh-rlhf`), or a function
            `file.py:function` (path → dictionaries).
        field: where the records are nested in a JSON file, dotted.
        columns: Kamerton's field → the file's column, its 0-based number where `header` is false, or a `Column`.
        header: whether the first row of a table names its columns.
        delimiter, quotes: of a table; by default `,` with quotes for CSV, a tab without quotes for TSV.
        encoding: as Python names it, or `cesu-8`.
        pattern: for `lines`: a regular expression that matches a whole line and names its columns by groups.
        labels: raw label → readable name; a list of the labels; or `auto`, which takes those that the data have and
            reads `_` and `-` as spaces.
    """

    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "lines", "conll"] = "auto"
    reader: Name | None = None
    field: str | None = None
    columns: dict[str, Column] = Field(default_factory=dict)
    header: bool = True
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quotes: bool | None = None
    encoding: str = "utf-8"
    pattern: str | None = None
    labels: Annotated[Literal["auto"] | dict[str, Name] | tuple[Name, ...], BeforeValidator(_labels)] = "auto"


class LocalSpec(Layout):
    """A local copy of a hub data set: files relative to the folder given with `--data`, and what differs in them."""

    path: Names = ()
    train: Names = ()
    validation: Names = ()
    test: Names = ()


class DataSpec(Part):
    """Where the examples are: a file for each split, one file to cut, or a hub id."""

    path: Names = ()
    train: Names = ()
    validation: Names = ()
    test: Names = ()
    hub: Name | None = None
    config: Name | None = None
    revision: Name | None = None
    splits: dict[Literal["train", "validation", "test"], Name] = Field(default_factory=dict)
    local: LocalSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "path")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        ways = [bool(self.path), bool(self.train or self.validation or self.test), self.hub is not None]
        if sum(ways) != 1:
            raise ValueError("needs exactly one of: path (one file to cut), train/validation/test (files), hub (an id)")
        if not self.hub and (self.config or self.revision or self.splits):
            raise ValueError("config, revision and splits belong to a hub id; name it with hub:")
        if (self.validation or self.test) and not self.train:
            raise ValueError("train is missing; name the training file with train:")
        return self


class Phrasing(Part):
    """One way of putting a task's questions; what it leaves out is as the task has it. A bare text is a template."""

    template: str | None = None
    instruction: str | None = None
    instruct_in: Literal["system", "user"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "template")


class TaskSpec(Layout):
    """The task: an embedded one by name, examples with how they are asked and judged, or a mixture of such tasks.

    Attributes:
        name: for reports; by default that of the embedded task, the file or the hub id.
        embedded: the name of an embedded task.
        data: where the examples are.
        shape: what the columns make; found from them where it is not stated.
        template: writes the question: `{name}` is a field or a column, `{choices}` the lettered choices of the example.
        segments: the one or two fields or columns that an encoder reads as its segments; by default those of the
            template in its order, else the question's (and what it is about).
        instruction: what to do; `{labels}` becomes the readable labels. Goes where `instruct_in` says.
        phrasings: several ways of putting the question; each example gets one of them, by a hash of its content.
        mixture: tasks whose training and validation examples are mixed; held_out: tasks that test it, unseen.
        cap: at most so many training, and so many validation, examples of each task of a mixture.
        choices: whether labels and choices are ranked (true), or the answer is generated (false).
        first_choice: the number of the first choice, where answers are numbers.
        empty_answer: the text that stands for "no answer"; without it an empty answer is an error.
        merge_answers: in validation and test, rows with the same question are one example with several answers.
        metrics: names, the first one decides; by default those of the shape.
        split, limit, seed: how splits are cut, how many examples of each are sampled, and the seed of the sample.
        max_answer_tokens: the longest answer that is generated, in tokens; 64 by default.
    """

    name: Name | None = None
    embedded: Name | None = None
    data: DataSpec | None = None
    shape: Literal["instruction", "prompt", "messages", "label", "question", "choice", "preference", "tags"] | None = (
        None
    )
    template: str | None = None
    segments: Names = ()
    instruction: str | None = None
    instruct_in: Literal["system", "user"] = "system"
    phrasings: tuple[Phrasing, ...] = ()
    mixture: tuple[TaskSpec, ...] = ()
    held_out: tuple[TaskSpec, ...] = ()
    cap: Count | None = None
    choices: bool = True
    first_choice: Annotated[int, BeforeValidator(not_bool), Field(ge=0)] = 0
    empty_answer: Name | None = None
    merge_answers: bool = False
    metrics: Names = ()
    split: SplitSpec = SplitSpec()
    limit: LimitSpec = LimitSpec()
    seed: Seed = 0
    max_answer_tokens: Count | None = None

    _source: Source = PrivateAttr(default_factory=Source)
    _root: FieldPath = PrivateAttr(default=())
    _moved: dict[str, FieldPath] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        if isinstance(data, str):
            # a file name has a suffix or a folder; the name of an embedded task has neither
            return {"data": {"path": data}} if "/" in data or "." in data else {"embedded": data}
        return data

    @model_validator(mode="after")
    def _embedded_or_data_or_mixture(self) -> Self:
        if sum([self.embedded is not None, self.data is not None, bool(self.mixture)]) != 1:
            raise ValueError(
                "needs exactly one of: embedded (the name of an embedded task), data (files or a hub id), "
                "mixture (several tasks)"
            )
        kinds = {
            "an embedded task": {"name", "embedded", "metrics", "limit", "seed", "max_answer_tokens"},
            "a mixture": {"name", "mixture", "held_out", "cap", "limit", "seed", "max_answer_tokens"},
        }
        kind = "an embedded task" if self.embedded is not None else "a mixture" if self.mixture else None
        if kind is not None:
            allowed = kinds[kind]
            for field in sorted(self.model_fields_set - allowed):
                raise ValueError(f"{kind} takes no {field}; it takes {', '.join(sorted(allowed))}")
        elif self.held_out or self.cap:
            raise ValueError("held_out and cap belong to a mixture; list its tasks under mixture:")
        if any(part.mixture for part in (*self.mixture, *self.held_out)):
            raise ValueError("a mixture is made of tasks, not of mixtures; list them all under one mixture:")
        return self

    def parts(self) -> list[tuple[FieldPath, TaskSpec]]:
        """The tasks of a mixture with their fields: those that are mixed, then those that are held out."""
        groups = (("mixture", self.mixture), ("held_out", self.held_out))
        return [((name, i), part) for name, parts in groups for i, part in enumerate(parts)]

    def place(self, source: Source, root: FieldPath) -> None:
        """Remember where the task and its parts stand in the recipe."""
        self._source, self._root = source, root
        for path, part in self.parts():
            part.place(source, (*root, *path))

    def phrased(self) -> list[TaskSpec]:
        """The task in each of its phrasings; itself where it has none."""
        out = []
        for index, phrasing in enumerate(self.phrasings):
            given = {name: value for name, value in phrasing.model_dump().items() if value is not None}
            one = self.model_copy(update={**given, "phrasings": ()})
            one._source, one._root = self._source, self._root
            one._moved = {name: ("phrasings", index, name) for name in given}
            out.append(one)
        return out or [self]

    def error(self, path: FieldPath, message: str, *, mend: str | None = None) -> TaskError:
        """An error at a field of the task (`path` is relative to the task), to be raised by who reads it."""
        moved = self._moved.get(str(path[0])) if path else None
        path = (*moved, *path[1:]) if moved else path
        return TaskError(message, where=self._source.where((*self._root, *path)), mend=mend)

    def resolve(self, path: str) -> Path:
        """A path of the task as `Recipe.resolve` does it; of a part from another recipe, from that one's folder."""
        return resolve(path, self._source.parts.get(self._root, self._source))


def resolve(path: str, source: Source) -> Path:
    """A path of a recipe as an absolute one, by the rule that `Recipe.resolve` states."""
    try:
        given = expanded(path)
    except KamertonError as error:
        raise RecipeError(f"{error.where}: {error.message}", where=source.path or "recipe", mend=error.mend) from None
    if given.is_absolute():
        return given
    beside = source.folder / given
    here = Path.cwd() / given
    return here if here.exists() and not beside.exists() else beside
