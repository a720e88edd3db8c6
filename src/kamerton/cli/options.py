"""What commands that train have in common: options of a method as `name=value`, and what is printed at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from kamerton.base.load import DtypeName

DtypeOption = Annotated[
    str, typer.Option(help="Data type of bases: auto, float32, bfloat16 or float16; tuned folders have their own.")
]
"""`--dtype` of commands that load targets."""

BackendOption = Annotated[str | None, typer.Option(help="What decodes: torch or vllm; default: the recipe's.")]
"""`--backend` of commands that take a recipe."""

ExecutorOption = Annotated[str, typer.Option(help="Where the work is done: local or ray.")]
"""`--executor` of commands that split their work."""
AddressOption = Annotated[
    str | None,
    typer.Option(help="With ray: HOST:PORT or auto; default: RAY_ADDRESS, else Ray is started on this machine."),
]
"""`--address` of the same."""
CpusOption = Annotated[int | None, typer.Option(help="Cores that each one gets; default: the recipe's.")]
"""`--cpus` of the same."""
MemoryOption = Annotated[str | None, typer.Option(help="Memory that each one gets: 8GB; default: the recipe's.")]
"""`--memory` of the same."""


def resource_fields(*, cpus: int | None = None, gpus: float | None = None, memory: str | None = None) -> list[str]:
    """Options that say what a task gets, as fields of the recipe for its overrides."""
    given = {"cpus": cpus, "gpus": gpus, "memory": memory}
    return [f"resources.{name}={value}" for name, value in given.items() if value is not None]


def backend_field(backend: str | None) -> list[str]:
    """`--backend` as a field of the recipe for its overrides.

    Raises:
        KamertonError: there is none of this name, or it is not installed.
    """
    if backend is None:
        return []
    from kamerton.backends import check_backend

    check_backend(backend)
    return [f"evaluation.backend={backend}"]


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a method from `name=value`, values as YAML.

    Raises:
        RecipeError: one without a value, or whose value is no YAML.
    """
    import yaml

    from kamerton.errors import RecipeError

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"--option {text} has no value", mend="write --option name=value")
        try:
            options[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--option {text} is not a YAML value", mend="put the value in quotes") from None
    return options


def dtype_name(given: str) -> DtypeName:
    """The value of `--dtype`.

    Raises:
        KamertonError: there is no such data type.
    """
    from kamerton.base.load import DtypeName
    from kamerton.errors import KamertonError
    from kamerton.recipe_errors import closest

    known = get_args(DtypeName)
    if given not in known:
        raise KamertonError(f"{given!r} is not known here", where="--dtype", mend=closest(given, known))
    return cast("DtypeName", given)


def tried(search: list[dict[str, Any]]) -> list[str]:
    """What a search tried, a line each: its settings, and what came of them."""
    from kamerton.methods.search import shown

    lines = []
    rungs = max((row.get("rung", 1) for row in search), default=1)
    for row in search:
        told = {name: value for name, value in row.items() if name not in ("tokens", "rung")}
        *settings, outcome = told
        value = told[outcome]
        after = f" after rung {row['rung']} of {rungs}" if rungs > 1 else ""
        came = "diverged" if value is None else f"{outcome.replace('_', ' ')} {value:.4f}"
        given = ", ".join(f"{name.replace('_', ' ')} {shown(told[name])}" for name in settings)
        lines.append(f"{given}: {came}{after}")
    return lines


def terminal(*, stderr: bool = False) -> Console:
    """Where commands write. What models and users wrote stays as it is: `:smile:` becomes no picture."""
    from rich.console import Console

    return Console(stderr=stderr, emoji=False)


def say(text: str) -> None:
    """One line on standard output, as it is."""
    terminal().print(text, highlight=False, markup=False, soft_wrap=True)


def picked(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Of a command's options those that were given, by their names without dashes."""
    return {name: given[f"--{name}"] for name in names if given[f"--{name}"] is not None}


def say_measured(lines: Iterable[str], sentences: Sequence[str], page: Path) -> None:
    """A measurement: its table, what it says, and where its page is."""
    for line in lines:
        say(line)
    for text in sentences:
        terminal().print(f"- {text}", highlight=False, markup=False)
    say(f"page: {page}")


def say_saved(folder: Path, recipe: Path) -> None:
    """Where a model is, and what to do with it."""
    say(f"saved: {folder}")
    say(f"next: kamerton eval {folder} {recipe}")
    say(f"or:   kamerton chat {folder}")
