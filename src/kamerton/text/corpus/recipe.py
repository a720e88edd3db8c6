"""The recipe of a corpus: where raw texts are, and the steps that they go through, in their order.

```yaml
sources:
  - path: plays/*.xml
  - {path: pages, domain: web}
steps: [extract, normalise, exact-duplicates, {gopher-quality: {language: ru}}]
```

Every mistake is one `RecipeError` line, as in every other recipe (`kamerton.recipe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from kamerton.errors import RecipeError
from kamerton.files import expanded
from kamerton.recipe_errors import closest, explain
from kamerton.recipe_source import Sourced, overridden, read_fields, validated
from kamerton.recipe_task import Count, Name, Names, Part
from kamerton.resources import Resources
from kamerton.text.corpus.options import STEPS
from kamerton.yaml_source import FieldPath, Source, text_keys

KINDS = ("text", "html", "xml", "jsonl", "parquet", "warc")


class SourceSpec(Part):
    """Files of one domain.

    Attributes:
        path: files, folders (all files below them) or patterns (`plays/*.xml`, `**` for any depth).
        domain: the name that their documents carry; by default that of the first path.
        kind: how they are read; `auto` goes by content, then by name.
        text, id: fields of JSON lines, columns of Parquet.
        content: what those texts are: plain text, or pages.
        keep: further fields or columns that documents keep.
        separator: cuts a plain text into documents; by default a file is one.
        encoding: of text, HTML and JSON lines; `auto` goes by marks, then UTF-8, then a guess.
    """

    path: Names
    domain: Name | None = None
    kind: Literal["auto", "text", "html", "xml", "jsonl", "parquet", "warc"] = "auto"
    text: Name = "text"
    id: Name = "id"
    content: Literal["text", "html"] = "text"
    keep: Names = ()
    separator: str | None = Field(None, min_length=1)
    encoding: Name = "auto"

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {"path": data} if isinstance(data, (str, list)) else data


class StepSpec(Part):
    """One step: its name, its options, and where it stands in the recipe."""

    name: Name
    options: Any
    label: str
    path: tuple[str | int, ...]


class CorpusRecipe(Sourced):
    """A validated recipe of a corpus.

    Attributes:
        most_bytes: the largest document, in bytes as it is read; larger ones are rejected.
        compression: of the corpus and of what was rejected.
        resources: of a piece of work on a cluster.
        output: the folder of results; by default `runs/NAME`.
    """

    name: Name
    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    steps: tuple[StepSpec, ...] = ()
    most_bytes: Count = 20_000_000
    compression: Literal["none", "gzip"] = "none"
    resources: Resources = Resources()
    output: Name | None = None

    _data: Path | None = PrivateAttr(default=None)

    def input(self, path: str) -> Path:
        """A path of a source as an absolute one: from the folder of data where one is given, else as `resolve`."""
        given = expanded(path)
        return self._data / given if self._data is not None and not given.is_absolute() else self.resolve(path)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, name: str = "corpus", source: Source | None = None,
        folder: str | Path | None = None,
    ) -> CorpusRecipe:  # fmt: skip
        """A recipe from plain values.

        Args:
            source: relative paths start from its folder, by default from the current directory.
            folder: the folder that relative paths of sources start from.

        Raises:
            RecipeError: a field is unknown, missing or wrong.
        """
        return _with_data(_build(text_keys(dict(data)), source or Source(), name), folder)


def load_corpus_recipe(
    path: str | Path, *, data: str | Path | None = None, overrides: Mapping[str, Any] | Sequence[str] = ()
) -> CorpusRecipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        data: the folder that relative paths of sources start from; by default the recipe's.
        overrides: fields to set, as in `kamerton.recipe.load_recipe`.

    Raises:
        RecipeError: one line with file, line, field and mend.
    """
    path = Path(path)
    raw, source = read_fields(path, "start with: sources, steps")
    return _with_data(_build(raw, overridden(raw, source, overrides), path.stem), data)


def _with_data(recipe: CorpusRecipe, data: str | Path | None) -> CorpusRecipe:
    if data is not None:
        if not Path(data).is_dir():
            raise RecipeError("no such folder", where=data, mend="give the folder that holds the sources' files")
        recipe._data = Path(data).resolve()
    return recipe


def _build(raw: dict[str, Any], source: Source, name: str) -> CorpusRecipe:
    given = {"name": name, **raw}
    if isinstance(given.get("sources"), (str, Mapping)):
        given["sources"] = [given["sources"]]
    if given.get("steps") is not None:
        given["steps"] = _steps(given["steps"], source)
    else:
        given.pop("steps", None)
    return validated(CorpusRecipe, given, raw, source)


def _steps(entries: object, source: Source) -> list[dict[str, Any]]:
    """Each entry as {name, options, label, path}; the options are validated by the step's own class."""
    if isinstance(entries, (str, Mapping)) or not isinstance(entries, Sequence):
        raise RecipeError("must be a list", where=source.where(("steps",)), mend="write one step a line: - extract")
    steps: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        path: FieldPath = ("steps", index)
        options: Any
        if isinstance(entry, str):
            name, options = entry, {}
        elif isinstance(entry, Mapping) and len(entry) == 1:
            name, options = next(iter(entry.items()))
            path, options = (*path, name), {} if options is None else options
        else:
            mend = "write - name, or - name: {option: value}"
            raise RecipeError("is not a step", where=source.where(path), mend=mend)
        known = STEPS.get(name)
        if known is None:
            raise RecipeError(f"no step {name!r}", where=source.where(path), mend=closest(name, STEPS))
        try:
            checked = known.options.model_validate(options)
        except ValidationError as error:
            raise explain(error, options, source.inside(path), known.options) from None
        steps.append({"name": name, "options": checked, "label": f"{index + 1:02d}-{name}", "path": path})
    return steps
