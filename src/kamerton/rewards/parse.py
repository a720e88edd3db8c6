"""What a recipe says of a reward: read and checked, its paths resolved, its files found.

reward: numeric                                  # a name of the table, or of a metric
reward: {numeric: {relative: 0.01}}              # with options
reward: {regex: "[0-9]+"}                        # a plain value is the option that matters most
reward: {exact: {}, weight: 0.5}                 # with a weight
reward: [numeric, {format: think, weight: 0.2}]  # the sum
reward: rewards.py:concise                       # a function
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kamerton.base.load import Base
from kamerton.errors import KamertonError, RecipeError
from kamerton.evaluation.metrics import metric_names
from kamerton.files import expanded
from kamerton.functions import is_function
from kamerton.recipe_errors import closest
from kamerton.rewards import REWARDS, get_reward
from kamerton.rewards.reward import Kind
from kamerton.tasks.example import Task
from kamerton.tuning.parameterisation import Options

WRITE = "write a name, {name: {option: value}}, or a list of these"
PLACES = {("function", "function"): "function", ("json-schema", "document"): "file", ("reward-model", "model"): "model",
          ("judge", "model"): "model"}  # fmt: skip
"""Options that name something on disk: a file, `file.py:function`, or a model's folder (else it is a hub id)."""


@dataclass(frozen=True)
class Part:
    """One reward of a sum."""

    name: str
    options: Options
    weight: float = 1.0

    def spec(self) -> str | dict[str, Any]:
        """As a recipe would say it, with all of its options, so that what is saved depends on no later default."""
        return {self.name: self.options.model_dump(), **({"weight": self.weight} if self.weight != 1 else {})}


def parse_reward(spec: Any, *, metric_first: bool = False) -> list[Part]:
    """The rewards of a recipe; nothing on disk is touched.

    Args:
        spec: as above.
        metric_first: a name that is a metric's and a reward's is the metric's.

    Raises:
        RecipeError: there is no such reward or option, or a value does not fit.
    """
    if not isinstance(spec, list | tuple):
        return [_part(spec, metric_first)]
    if not spec:
        raise RecipeError("reward is an empty list", mend=WRITE)
    return [_part(one, metric_first) for one in spec]


def canonical(spec: Any) -> Any:
    """What a recipe says, with all options written out."""
    parts = tuple(part.spec() for part in parse_reward(spec))
    return parts if isinstance(spec, list | tuple) else parts[0]


def check_reward(spec: Any, base: Base, task: Task) -> None:
    """Refuse a reward that cannot work on a base and a task, before anything is computed.

    Raises:
        RecipeError: which reward, and what is wrong with it; `where` is `reward`.
    """
    for part in parse_reward(task.metrics[0] if spec is None else spec, metric_first=spec is None):
        try:
            get_reward(part.name).check(base, task, part.options)
        except KamertonError as error:
            own = error.where if error.where not in (None, f"reward {part.name}", task.name) else None
            message = f"{part.name}: {f'{own}: ' if own else ''}{error.message}"
            raise RecipeError(message, where="reward", mend=error.mend) from error


def with_reward_paths(spec: Any, resolve: Callable[[str], Path]) -> Any:
    """What a recipe says of a reward, with its paths resolved; what cannot be understood is left as it is."""
    if isinstance(spec, list | tuple):
        return [with_reward_paths(one, resolve) for one in spec]
    if isinstance(spec, str):
        return _function(spec, resolve) if _is_own(spec) else spec
    if not isinstance(spec, Mapping):
        return spec
    out = dict(spec)
    for (name, option), kind in PLACES.items():
        if name not in out:
            continue
        if isinstance(out[name], str):
            out[name] = _placed(kind, out[name], resolve)
        elif isinstance(out[name], Mapping) and isinstance(out[name].get(option), str):
            out[name] = {**out[name], option: _placed(kind, out[name][option], resolve)}
    return out


def reward_files(spec: Any) -> list[Path]:
    """The files and folders that a reward is made of, as far as they are there."""
    found = []
    for part in parse_reward(spec) if spec is not None else ():
        for (name, option), kind in PLACES.items():
            value = getattr(part.options, option, None) if name == part.name else None
            if isinstance(value, str):
                found.append(expanded(value.rpartition(":")[0] if kind == "function" else value))
    return [path for path in found if path.exists()]


def _placed(kind: str, value: str, resolve: Callable[[str], Path]) -> str:
    if kind == "function":
        return _function(value, resolve)
    named = value.startswith((".", "/", "~"))
    return str(resolve(value)) if kind == "file" or named or (value != "demo" and resolve(value).is_dir()) else value


def _function(value: str, resolve: Callable[[str], Path]) -> str:
    file, colon, function = value.rpartition(":")
    return f"{resolve(file)}:{function}" if colon and file.endswith(".py") else value


def _is_metric(name: str) -> bool:
    """Whether a name is a metric's, with a parameter or without (`bleu:zh`)."""
    return name.partition(":")[0] in (*metric_names(), "by-group")


def _is_own(name: str) -> bool:
    """Whether a bare name means a function of the user's own."""
    return is_function(name) and name not in REWARDS and not _is_metric(name)


def _part(spec: Any, metric_first: bool) -> Part:
    if isinstance(spec, str):
        return _named(spec, None, 1.0, metric_first)
    if not isinstance(spec, Mapping):
        raise RecipeError(f"a reward must be a name, or a name with its options, not {spec!r}", mend=WRITE)
    names = [name for name in spec if name != "weight"]
    if len(names) != 1:
        text = ", ".join(map(str, names)) or "nothing"
        mend = "write a list of rewards to sum them: - {numeric: {}, weight: 1}"
        raise RecipeError(f"a reward has one name, and a weight beside it; this names {text}", mend=mend)
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
        raise RecipeError(f"weight must be a number, not {weight!r}", mend="write weight: 0.5")
    return _named(str(names[0]), spec[names[0]], float(weight), metric_first)


def _named(name: str, given: Any, weight: float, metric_first: bool) -> Part:
    if name in REWARDS and not metric_first:
        return _with_options(name, given, weight)
    if metric_first or _is_metric(name):
        kind = "metric"
    elif is_function(name):
        kind = "function"
    else:
        raise RecipeError(f"unknown reward '{name}'", mend=closest(name, [*REWARDS, *metric_names()]))
    if given is not None and not isinstance(given, Mapping):
        mend = f"write {name}: {{option: value}}"
        raise RecipeError(f"options of {name} must be a mapping, not {given!r}", mend=mend)
    return _with_options(kind, {get_reward(kind).short: name, **(given or {})}, weight)


def _with_options(name: str, given: Any, weight: float) -> Part:
    kind = get_reward(name)
    if given is None:
        given = {}
    elif not isinstance(given, Mapping):
        if not kind.short:
            mend = f"write {name}: {{option: value}}"
            raise RecipeError(f"options of {name} must be a mapping, not {given!r}", mend=mend)
        given = {kind.short: given}
    try:
        return Part(name, kind.options(**{str(k): v for k, v in given.items()}), weight)
    except ValidationError as error:
        raise _explained(name, kind, error) from None


def _explained(name: str, kind: Kind, error: ValidationError) -> RecipeError:
    """The first mistake of a reward's options."""
    first = error.errors()[0]
    option = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = list(kind.options.model_fields)
        return RecipeError(f"reward {name} has no option '{option}'", mend=closest(option, known))
    if first["type"] == "missing":
        return RecipeError(f"reward {name} needs {option}", mend=f"write {name}: {{{option}: …}}")
    place = f"{name}.{option}" if option else name
    if first["type"] == "value_error":  # our own checks say what they were given, and the mend
        message, _, mend = first["msg"].removeprefix("Value error, ").partition("; ")
        return RecipeError(f"{place}: {message}", mend=mend or f"see: kamerton rewards {name}")
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"
    return RecipeError(f"{place}: {message}", mend=f"see: kamerton rewards {name}")
