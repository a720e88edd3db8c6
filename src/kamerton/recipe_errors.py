"""Pydantic's complaints about a recipe, turned into one line with a place, a reason and a mend.

A recipe can have several mistakes; the first one (by line) is shown, with the count of the others, so that the line
stays readable and a person mends them top down.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kamerton.errors import RecipeError
from kamerton.yaml_source import FieldPath, Source

_KINDS = {
    "int_type": ("must be a whole number", "write a number such as 16"),
    "int_parsing": ("must be a whole number", "write a number such as 16"),
    "int_from_float": ("must be a whole number", "write it without a fraction"),
    "float_type": ("must be a number", "write a number such as 0.1"),
    "float_parsing": ("must be a number", "write a number such as 0.1"),
    "finite_number": ("must be finite", "leave the field out to set no limit"),
    "string_type": ("must be text", "write one value, in quotes where it looks like something else"),
    "string_too_short": ("is empty", "write a value or leave the field out"),
    "string_too_long": ("is too long", 'write one character; a tab is "\\t" in double quotes'),
    "bool_type": ("must be true or false", "write true or false"),
    "bool_parsing": ("must be true or false", "write true or false"),
    "dict_type": ("must be a mapping", "write field: value pairs below it"),
    "model_type": ("must be a mapping", "write field: value pairs below it"),
    "model_attributes_type": ("must be a mapping", "write field: value pairs below it"),
    "tuple_type": ("must be a list", "write [a, b] or one item a line with a dash"),
    "list_type": ("must be a list", "write [a, b] or one item a line with a dash"),
    "too_short": ("is empty", "list at least one"),
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be less than {}"),
    "less_than_equal": ("le", "must be at most {}"),
}


def closest(name: str, known: Iterable[str]) -> str:
    """A mend for a name that does not exist: the closest one that does, in whatever case, or all of them."""
    names = sorted(set(known))
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near}?"
    return f"known are: {', '.join(names)}" if names else "nothing is known here"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name that is closest to one that does not exist, upper and lower case aside; None where none is close."""
    names = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return names[near[0]] if near else None


def explain(error: ValidationError, raw: Mapping[str, Any], source: Source, model: type[BaseModel]) -> RecipeError:
    """The first mistake of a recipe as one line; `raw` is the recipe as it was read, `model` what it should be."""
    found: dict[FieldPath, tuple[tuple[int, bool], str, str]] = {}
    for problem in error.errors():
        missing = problem["type"] == "missing"
        path = _in_recipe(tuple(problem["loc"]), raw, keep_last=missing)
        message, mend = _say(problem, path, model)
        place = next((source.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in source.lines), 0)
        if path not in found:  # a field with several allowed types complains once for each
            found[path] = ((place, missing), message, mend)  # a misspelt field is also missing: say the former
    path, (_, message, mend) = min(found.items(), key=lambda item: item[1][0])
    more = len(found) - 1
    if more:
        mend = f"{mend} (and {more} more mistake{'s' if more > 1 else ''} below)"
    return RecipeError(message, where=source.where(path), mend=mend)


def _in_recipe(location: tuple[int | str, ...], raw: Any, keep_last: bool) -> FieldPath:
    """Pydantic's location without the steps that are not in the recipe (type names of unions, expanded short forms)."""
    path: list[str | int] = []
    node = raw
    for step in location:
        inside = step in node if isinstance(node, Mapping) else isinstance(node, list) and step in range(len(node))
        if inside:
            node = node[step]
        elif keep_last and step == location[-1]:
            pass
        else:
            continue
        path.append(step)
    return tuple(path)


def _say(problem: Any, path: FieldPath, model: type[BaseModel]) -> tuple[str, str]:
    kind, context, given = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        return f"unknown field {path[-1]!r}", closest(str(path[-1]), _names(owner))
    if kind == "missing":
        return "is missing", f"add {path[-1]}: to the recipe"
    if kind in _BOUNDS:
        name, text = _BOUNDS[kind]
        return f"{text.format(f'{context[name]:g}')}, not {given}", "change the number or leave the field out"
    if kind == "literal_error":
        options = [option.strip().strip("'") for option in context["expected"].replace(" or ", ", ").split(",")]
        return f"{given!r} is not known here", closest(str(given), options)
    if kind == "value_error":
        message, _, mend = str(context["error"]).partition("; ")
        return message, mend or "compare with the recipes in examples/"
    if kind in _KINDS:
        message, mend = _KINDS[kind]
        return (f"{message}, not {given!r}" if isinstance(given, (str, int, float)) and given != "" else message), mend
    return str(problem["msg"]).replace("Input should be", "must be"), "compare with the recipes in examples/"


def _names(model: type[BaseModel] | None) -> list[str]:
    if model is None:
        return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], path: FieldPath) -> type[BaseModel] | None:
    """The model that a field path of the recipe is validated with."""
    at: type[BaseModel] | None = model
    for step in path:
        if at is None:
            return None
        field = next((f for name, f in at.model_fields.items() if step in (name, f.alias)), None)
        if field is None:
            continue  # an index or a free key: the model of the container's values was already taken
        at = _first_model(field.annotation)
    return at


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _first_model(part)) is not None), None)
