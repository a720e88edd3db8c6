"""What recipes of every kind share: where they were read from, and that each mistake is one line with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PrivateAttr, ValidationError

from kamerton.errors import RecipeError
from kamerton.recipe_errors import explain
from kamerton.recipe_overrides import set_fields
from kamerton.recipe_task import Part, resolve
from kamerton.yaml_source import FieldPath, Source, read_yaml


class Sourced(Part):
    """A recipe that knows its file: `source`, its `text` as given, and the lines of its fields."""

    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def source(self) -> Path | None:
        """The file that the recipe was read from."""
        return self._source.path

    @property
    def text(self) -> str:
        """The recipe as given, "" where it was made from a dictionary."""
        return self._source.text

    def error(self, path: FieldPath, message: str, *, mend: str | None = None) -> RecipeError:
        """An error at a field, for who finds out later: `raise recipe.error(("methods", 1, "rank"), "…", mend="…")`."""
        return RecipeError(message, where=self._source.where(path), mend=mend)

    def resolve(self, path: str) -> Path:
        """A path of the recipe as an absolute one.

        Relative paths start from the recipe's folder. Only where nothing is there and something is there from the
        current directory, that is taken. `~` is the home folder.
        """
        return resolve(path, self._source)


Kind = TypeVar("Kind", bound=Sourced)


def read_fields(path: Path, start: str, shape: str | None = None) -> tuple[dict[str, Any], Source]:
    """The fields of a recipe's file, and their lines.

    Args:
        path: the YAML file.
        start: the mend for an empty file; `shape`: for one that is no mapping, by default the same.

    Raises:
        RecipeError: it cannot be read, is empty or no mapping.
    """
    raw, source = read_yaml(path)
    if raw is None:
        raise RecipeError("is empty", where=path, mend=start)
    if not isinstance(raw, dict):
        raise RecipeError("is not a mapping of fields", where=path, mend=shape or start)
    return raw, source


def overridden(raw: dict[str, Any], source: Source, fields: Mapping[str, Any] | Sequence[str]) -> Source:
    """Set fields in place, and give the source that knows which were set."""
    return replace(source, overrides=frozenset(set_fields(raw, fields)))


def validated(kind: type[Kind], given: dict[str, Any], raw: dict[str, Any], source: Source) -> Kind:
    """A recipe of a kind.

    Args:
        given: its fields as the kind takes them; `raw`: as they were written.

    Raises:
        RecipeError: a field is unknown, missing or wrong.
    """
    try:
        recipe = kind.model_validate(given)
    except ValidationError as error:
        raise explain(error, raw, source, kind) from None
    recipe._source = source
    return recipe
