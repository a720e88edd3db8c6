"""YAML that knows its lines: what a recipe is read with, so that every error can name file, line and field.

Follows the YAML 1.2 core schema where PyYAML follows 1.1: `yes`, `no`, `on` and `off` are text (they are common
labels), `1e-3` is a number, `12:30`, `2024-01-31` and `007` are text. A key that is written twice is an error; PyYAML
keeps the last one silently. Custom tags are errors.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kamerton.errors import RecipeError

FieldPath = tuple[str | int, ...]

_MOST_FIELDS = 100_000


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)


_FLOAT = (
    r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+)$", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


@dataclass(frozen=True, slots=True)
class Source:
    """Where a recipe came from, and the line of every field in it.

    Attributes:
        path: the file, or None for a recipe made from a dictionary.
        folder: the folder that relative paths start from.
        lines: the 1-based line of each field path; a sequence item is addressed by its 0-based index.
        overrides: field paths that were set from outside the file; errors there must not blame a line of it.
        text: the file as given, "" for a dictionary.
        parts: fields whose content was taken from the task of another recipe, with that recipe's source.
        root: the field of the file whose content this is, where it is not all of it.
    """

    path: Path | None = None
    folder: Path = field(default_factory=Path.cwd)
    lines: dict[FieldPath, int] = field(default_factory=dict)
    overrides: frozenset[FieldPath] = frozenset()
    text: str = ""
    parts: dict[FieldPath, Source] = field(default_factory=dict)
    root: FieldPath = ()

    def inside(self, root: FieldPath) -> Source:
        """The source as seen from one of its fields, for a part that is a recipe of its own."""
        size = len(root)
        # what was set from outside at the field or above it was set in all of it
        above = any(changed == root[: len(changed)] for changed in self.overrides)
        below = frozenset(path[size:] for path in self.overrides if path[:size] == root)
        return replace(
            self, root=(*self.root, *root), overrides=below | {()} if above else below,
            lines={path[size:]: line for path, line in self.lines.items() if path[:size] == root},
            parts={path[size:]: part for path, part in self.parts.items() if path[:size] == root},
        )  # fmt: skip

    def where(self, path: FieldPath) -> str:
        """`FILE:LINE: field.path`; the line is that of the longest part of the path that the file has."""
        name = ".".join(str(part) for part in (*self.root, *path))
        if any(path[: len(changed)] == changed for changed in self.overrides):
            return f"override {name}"
        for root, other in self.parts.items():
            inside = path[len(root) :]
            if path[: len(root)] == root and inside and path[: len(root) + 1] not in self.lines:
                return other.where(("task", *inside))
        file = str(self.path) if self.path else "recipe"
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        place = f"{file}:{self.lines[known]}" if known is not None else file
        return f"{place}: {name}" if name else place


def read_yaml(path: Path) -> tuple[Any, Source]:
    """A YAML file as plain values, with the line of each field.

    Raises:
        RecipeError: the file is missing, is not UTF-8, is not YAML, or has a key twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError("no such file", where=path, mend="check the path of the recipe") from None
    except IsADirectoryError:
        raise RecipeError("is a folder, not a recipe", where=path, mend="name the YAML file in it") from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=path, mend="check its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError("is not UTF-8", where=f"{path}:{line}", mend="save the recipe as UTF-8") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path | None = None) -> tuple[Any, Source]:
    """YAML text as plain values, with the line of each field; `path` is only used to name the place of an error."""
    file = str(path) if path else "recipe"
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[FieldPath, int] = {}
        if node is not None:
            _walk(node, (), lines, file, set())
            value = text_keys(loader.construct_document(node))
        else:
            value = None
    except RecursionError:
        raise RecipeError("is nested too deeply", where=file, mend="write it with fewer levels") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is not None and error.context_mark is not None and mark.index >= len(text.rstrip()):
            mark = error.context_mark  # a bracket or quote that is never closed: where it opens
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = error.problem or "cannot be parsed"
        if "cannot start any token" in problem and "'\\t'" in problem:
            raise RecipeError("a tab is used for indentation", where=where, mend="indent with spaces") from None
        mend = "check indentation, colons and quotes on that line and the one above"
        raise RecipeError(f"is not YAML: {problem}", where=where, mend=mend) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"is not YAML: {error}", where=file, mend="check for unprintable characters") from None
    except ValueError as error:  # a constructor that cannot hold the value, such as an int of 10,000 digits
        raise RecipeError(f"is not YAML: {error}", where=file, mend="put the value in quotes") from None
    finally:
        if loader is not None:
            loader.dispose()
    folder = path.resolve().parent if path else Path.cwd()
    return value, Source(path=path, folder=folder, lines=lines, text=text)


def text_keys(value: Any) -> Any:
    """The same value with every mapping key as text (`0` becomes "0", `true` "true"): labels are often numbers."""
    if isinstance(value, dict):
        return {str(key).lower() if isinstance(key, bool) else str(key): text_keys(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [text_keys(item) for item in value]
    return value


def _walk(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int], file: str, above: set[int]) -> None:
    """Note the line of every field, and refuse a key that is written twice or an alias that contains itself."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > _MOST_FIELDS:  # aliases of aliases multiply
        raise RecipeError(f"has more than {_MOST_FIELDS:,} fields", where=file, mend="use fewer anchors")
    if id(node) in above:
        where = f"{file}:{node.start_mark.line + 1}"
        raise RecipeError("an anchor contains itself", where=where, mend="write the value out")
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= sign <= "\udfff" for sign in node.value):
        where = f"{file}:{node.start_mark.line + 1}"
        mend = "write the character itself, or \\U and the eight digits of its code"
        raise RecipeError("has half of a surrogate pair", where=where, mend=mend)
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError("a key is not plain text", where=f"{file}:{line}", mend="put the key in quotes")
            key = key_node.value
            if key == "<<":
                continue
            if key in seen:
                name = ".".join(str(part) for part in (*path, key))
                message = f"is written twice (first on line {seen[key]})"
                raise RecipeError(message, where=f"{file}:{line}: {name}", mend="keep one of the two")
            seen[key] = line
            lines[*path, key] = line
            _walk(value_node, (*path, key), lines, file, above | {id(node)})
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, file, above | {id(node)})
