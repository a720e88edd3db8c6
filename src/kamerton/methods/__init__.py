"""Every method by name. A new method is one file and one line in the table below."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kamerton.errors import KamertonError, ModelError, RecipeError

if TYPE_CHECKING:
    from kamerton.base import Base
    from kamerton.methods.method import Adapted, Method
    from kamerton.recipe import MethodSpec, Recipe
    from kamerton.tuning.parameterisation import Options

METHODS: dict[str, str] = {
    "majority": "kamerton.methods.majority:Majority",
    "zero-shot": "kamerton.methods.zero_shot:ZeroShot",
    "few-shot": "kamerton.methods.few_shot:FewShot",
    "prompt-search": "kamerton.methods.prompt_search:PromptSearch",
    "chain-of-thought": "kamerton.methods.chain_of_thought:ChainOfThought",
    "self-consistency": "kamerton.methods.self_consistency:SelfConsistency",
    "best-of-n": "kamerton.methods.best_of_n:BestOfN",
    "thinking-budget": "kamerton.methods.thinking_budget:ThinkingBudget",
    "calibration": "kamerton.methods.calibration:Calibration",
    "retrieval": "kamerton.methods.retrieval:Retrieval",
    "prompt-tuning": "kamerton.methods.prompt_tuning:PromptTuningMethod",
    "prefix-tuning": "kamerton.methods.prefix_tuning:PrefixTuningMethod",
    "p-tuning": "kamerton.methods.p_tuning:PTuningMethod",
    "p-tuning-v2": "kamerton.methods.p_tuning_v2:PTuningV2Method",
    "prompt-generator": "kamerton.methods.prompt_generator:PromptGeneratorMethod",
    "gan-prompt": "kamerton.methods.gan_prompt:GanPrompt",
    "ia3": "kamerton.methods.ia3:Ia3Method",
    "adapter": "kamerton.methods.adapter:AdapterMethod",
    "lora": "kamerton.methods.lora:LoraMethod",
    "qlora": "kamerton.methods.qlora:QLoraMethod",
    "full": "kamerton.methods.full:FullMethod",
    "head": "kamerton.methods.head:HeadMethod",
    "rag": "kamerton.methods.rag:Rag",
}


def get_method(name: str) -> Method:
    """A method by name.

    Raises:
        RecipeError: there is none of that name; the closest one is named.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        mend = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(METHODS)}"
        raise RecipeError(f"unknown method '{name}'", mend=mend)
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)()


def parse_options(method: Method, options: dict[str, Any]) -> Options:
    """Validate a method's options.

    Raises:
        OptionError: an unknown option or a value that does not fit; `option` names it.
    """
    from pydantic import ValidationError

    try:
        return method.options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        known = list(method.options.model_fields)
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known) or 'no option'}"
            raise OptionError(f"{method.name} has no option '{name}'", option=name, mend=mend) from None
        message = first["msg"].removeprefix("Value error, ")
        mend = f"see: kamerton methods {method.name}"
        if first["type"] == "value_error":  # our own checks say what they were given, and the mend
            message, _, own = message.partition("; ")
            mend = own or mend
        else:
            message = f"{message}, not {first['input']!r}"
        raise OptionError(
            f"{message[0].lower()}{message[1:]}", option=name, mend=mend, where=f"{method.name}.{name}"
        ) from None


PATHS = ("texts", "index", "documents")
"""Options that name files or folders, one or several; in a recipe they start from its folder. So does `encoder`, where
it names a folder and not a model."""


def _is_path(name: str, value: Any) -> bool:
    return name in PATHS or (name == "encoder" and isinstance(value, str) and value.startswith((".", "/", "~")))


def with_paths(recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's options of a method with their paths resolved, those of methods inside too."""
    from kamerton.rewards.parse import with_reward_paths

    out: dict[str, Any] = {}
    for name, value in options.items():
        if name == "reward":
            value = with_reward_paths(value, recipe.resolve)
        elif _is_path(name, value) and isinstance(value, str):
            value = str(recipe.resolve(value))
        elif name in PATHS and isinstance(value, list | tuple):
            value = [str(recipe.resolve(one)) if isinstance(one, str) else one for one in value]
        elif isinstance(value, Mapping):
            value = with_paths(recipe, value)
        out[name] = value
    return out


def option_files(options: Mapping[str, Any]) -> dict[str, str]:
    """The content of files that options name, as SHA-256 by path: whoever changes a file asks for another result."""
    from kamerton.rewards.parse import reward_files

    out: dict[str, str] = {}
    for name, value in options.items():
        if name == "reward":
            out |= {str(path): digest(path) for path in reward_files(value)}
        elif _is_path(name, value):
            named = [value] if isinstance(value, str) else value or ()
            out |= {one: digest(Path(one)) for one in named if Path(one).exists()}
        elif isinstance(value, Mapping):
            out |= option_files(value)
    return out


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names; locks are left out."""
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    for file in [path] if path.is_file() else files:
        total.update(f"{file.relative_to(path)}:{file.stat().st_size}:".encode())
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


class OptionError(RecipeError):
    """An option that a method does not have or cannot take."""

    def __init__(self, message: str, *, option: str, mend: str, where: str | None = None) -> None:
        super().__init__(message, where=where, mend=mend)
        self.option = option

    def __reduce__(self) -> tuple[object, ...]:
        return (RecipeError, (str(self),))


def resolve(recipe: Recipe) -> list[tuple[str, Method, Options, int]]:
    """The methods of a recipe as (label, method, options, place in the recipe), every mistake at its line."""
    return [(spec.label, *resolve_one(recipe, spec), i) for i, spec in enumerate(recipe.methods)]


def resolve_one(recipe: Recipe, spec: MethodSpec, replaced: Mapping[str, Any] | None = None) -> tuple[Method, Options]:
    """One method of a recipe with its options, some of them replaced."""
    try:
        method = get_method(spec.name)
        return method, parse_options(method, {**with_paths(recipe, spec.options), **(replaced or {})})
    except OptionError as error:
        raise recipe.error((*spec.path, error.option), error.message, mend=error.mend) from None
    except RecipeError as error:
        raise recipe.error(spec.path, error.message, mend=error.mend) from None


def at_its_line(recipe: Recipe, spec: MethodSpec, error: KamertonError) -> RecipeError:
    """An error that a method's check found, at the recipe's line of the option that is to blame, if one is.

    Args:
        recipe: the recipe.
        spec: of the method in it.
        error: its `where` is `option`, `method.option`, the path that an option names, or something else.
    """
    path, name, options = spec.path, spec.name, spec.options
    where = error.where or ""
    while True:
        for option, value in options.items():
            named = str(recipe.resolve(value)) if isinstance(value, str) and _is_path(option, value) else ""
            if where and where in (option, f"{name}.{option}", named):
                return recipe.error((*path, option), error.message, mend=error.mend)
        option, inner = next(((o, options[o]) for o in ("over", "generator") if o in options), ("", None))
        if not isinstance(inner, Mapping) or len(inner) != 1:
            break
        ((name, options),) = inner.items()
        path, options = (*path, option, name), options or {}
    message = f"{where}: {error.message}" if Path(where).is_absolute() else error.message
    return recipe.error(spec.path, message, mend=error.mend)


def load_adapted(folder: str | Path, base: Base | None = None) -> Adapted:
    """Load what `Adapted.save` wrote.

    Args:
        folder: the folder with `kamerton.json`.
        base: the base, if it is loaded already; default: the one named in the folder.

    Raises:
        ModelError: not such a folder, or it was made for another base or another renderer.
    """
    from kamerton.base import load_base

    folder = Path(folder)
    path = folder / "kamerton.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        method = get_method(about["method"])
        parse_options(method, about["options"])
        request, prints = dict(about["base"]), (about["renderer_fingerprint"], about["base_fingerprint"])
        if not all(isinstance(saved, str) for saved in prints) or not all(isinstance(key, str) for key in request):
            raise TypeError("a fingerprint or the base is not what was written")
    except FileNotFoundError:
        mend = "give the folder that tune or compare wrote"
        raise ModelError("no kamerton.json here", where=folder, mend=mend) from None
    except RecipeError as error:
        raise ModelError(error.message, where=path, mend="tune the method again with this version") from None
    except KeyError as error:
        raise ModelError(f"has no {error}", where=path, mend="tune the method again") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"cannot be read ({error})", where=path, mend="tune the method again") from None
    try:
        base = base or load_base(**request)
    except ModelError as error:
        raise ModelError(f"its base, {error}", where=path) from error
    except TypeError as error:  # a field that no base has
        raise ModelError(f"cannot be read ({error})", where=path, mend="tune the method again") from error
    for name, own, saved in zip(
        ("renderer", "base"), (base.renderer.fingerprint, base.info.fingerprint), prints, strict=True
    ):
        if own != saved:
            raise ModelError(
                f"it was made for another {name} (fingerprint {saved[:12]}, this one has {own[:12]})",
                where=path,
                mend="use the base, template and data type that it was made with, or tune it again",
            )
    try:
        return method.load(base, folder, about)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        # each method has a state of its own in the file, and takes it as it wrote it
        reason = f"its state cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        raise ModelError(reason, where=path, mend="tune the method again") from error
