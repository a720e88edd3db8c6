"""Functions of the user's own, named in a recipe: `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kamerton.errors import TaskError
from kamerton.recipe_errors import closest


def is_function(name: str) -> bool:
    """Whether a name in a recipe means a function of the user's own."""
    module, colon, function = name.rpartition(":")
    return bool(colon and module and function.isidentifier())


def import_function(name: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `file.py:function` names.

    A package is looked up as Python does it, and then in the current directory. Importing runs the user's code.

    Raises:
        TaskError: there is no such file, module or function, or importing it fails.
    """
    module_name, _, function_name = name.rpartition(":")
    try:
        module = _from_file(Path(module_name)) if module_name.endswith(".py") else _from_path(module_name)
    except FileNotFoundError:
        raise TaskError("no such file", where=module_name, mend="check the path before the colon") from None
    except ModuleNotFoundError as error:
        mend = "install it, or name a file: path/to/file.py:function"
        raise TaskError(f"cannot import {error.name}", where=name, mend=mend) from None
    except Exception as error:  # anything can be raised while the user's module runs
        reason = f"importing fails: {type(error).__name__}: {error}"
        raise TaskError(reason, where=name, mend=f"run python {module_name} to see the error") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TaskError(f"no function {function_name!r}", where=module_name, mend=closest(function_name, names))
    return function


def function_file(name: str) -> Path | None:
    """The file that holds a function which was imported by that name; None where it has none (a built-in module)."""
    module = name.rpartition(":")[0]
    file = module if module.endswith(".py") else getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file is not None else None


def _from_file(path: Path) -> Any:
    code = path.read_bytes()
    # the content is part of the name, so that two files called metrics.py, or two versions of one, do not collide
    name = f"kamerton_user_{path.stem}_{hashlib.sha256(code).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_path(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)
