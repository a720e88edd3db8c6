"""Targets, what can answer: a tuned folder, a comparison (its winner), a cell of one, or a base by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kamerton.base import Base, load_base
from kamerton.base.load import DtypeName
from kamerton.comparison.run import Comparison
from kamerton.errors import KamertonError
from kamerton.functions import is_function
from kamerton.methods import load_adapted
from kamerton.methods.method import Adapted, Run
from kamerton.methods.zero_shot import ZeroShot, ZeroShotOptions
from kamerton.recipe import is_label
from kamerton.tasks import Task
from kamerton.training import Budget

NO_TASK = Task("none", (), (), (), ())
"""What an untouched base is asked beside any task."""


def load(target: str | Path, *, base: Base | None = None, dtype: DtypeName = "auto") -> Adapted:
    """Load what can answer: a folder of `tune`, a comparison (its winner), a cell of one, or a base by its name.

    Args:
        target: the folder or name.
        base: its base, where that is loaded already.
        dtype: of a base that is loaded; a tuned folder has the data type that it was made in.

    Raises:
        KamertonError: it cannot be loaded, or was made in another data type than `dtype` asks for.
    """
    folder = _saved(target)
    if folder is not None:
        _check_dtype(folder, dtype)
        check_trust(folder)
        return load_adapted(folder, base)
    base = base or load_base(target, dtype=dtype)
    if base.model.encoder:
        mend = "train one: kamerton tune, or kamerton compare, with this base"
        raise KamertonError("an encoder answers nothing without a trained head", where=target, mend=mend)
    return ZeroShot().fit(base, NO_TASK, Budget(), ZeroShotOptions(), Run(Path()))


TRUSTED = "KAMERTON_TRUST_CODE"
"""The environment variable that names, one after another, the code that a saved folder may run."""


def check_trust(folder: Path) -> None:
    """Refuse to run code because a saved folder says so: it may come from anywhere.

    A recipe names such code itself, so it is run there: `trust_remote_code` of a base, and functions (`module:function`
    or `file.py:function`) as rewards and metrics.

    Raises:
        KamertonError: the folder names code, and the user has not.
    """
    for file in [folder / "kamerton.json", *sorted(folder.glob("over/**/kamerton.json"))]:
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # loading says what is wrong with it
        asked = about.get("base") if isinstance(about, dict) else None
        named = list(_functions(about))
        if isinstance(asked, dict) and asked.get("trust_remote_code"):
            named.append(str(asked.get("name")))
        for name in named:
            if name not in os.environ.get(TRUSTED, "").split():
                mend = f"if you trust it, set {TRUSTED}={name}"
                raise KamertonError(f"it would run code: {name}", where=file, mend=mend)


def _functions(value: Any, key: str = "") -> Iterator[str]:
    """The functions that options name, wherever they stand in them."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _functions(inside, str(name))
    elif isinstance(value, list):
        for inside in value:
            yield from _functions(inside, key)
    elif isinstance(value, str) and key in ("function", "metric", "metrics", "reward") and is_function(value):
        yield value


def _saved(target: str | Path) -> Path | None:
    """The folder that `Adapted.save` wrote, for a target that is or holds one; None for a base."""
    folder = Path(target)
    if (folder / "kamerton.json").is_file():
        return folder
    if (folder / "adapter" / "kamerton.json").is_file():
        return folder / "adapter"
    return winner(folder) if (folder / "results.json").is_file() else None


def _check_dtype(folder: Path, dtype: str) -> None:
    if dtype == "auto":
        return
    about = _about(folder)
    made = about["base"].get("dtype") if about else dtype  # what cannot be read is said by loading
    if made != dtype:
        raise KamertonError(
            f"it was made in {made} and answers in {made}", where=folder, mend="leave --dtype out: it is for bases"
        )


def _about(folder: Path) -> dict[str, Any] | None:
    """What is saved in a folder; None where it is not what `Adapted.save` writes."""
    try:
        about: dict[str, Any] = json.loads((folder / "kamerton.json").read_text(encoding="utf-8"))
        about["base_fingerprint"], about["renderer_fingerprint"], about["base"]["dtype"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about


def winner(folder: str | Path) -> Path:
    """The folder of a comparison's winner: the best method's seed with the lowest validation loss."""
    folder = Path(folder)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        verdict = results["verdict"]
        best: Sequence[str] = verdict["best"] if verdict else ()
        # methods that share the first rank: the one that scored best
        label = next((row["label"] for row in verdict["rows"] if row["label"] in best), None) if best else None
        if label is not None and not is_label(label):
            raise ValueError(f"{label!r} is no label")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise KamertonError(
            f"cannot be read ({error})", where=folder / "results.json", mend="run kamerton compare again"
        ) from None
    if label is None:
        raise KamertonError("the comparison has no winner yet", where=folder, mend="let it finish: kamerton compare")
    return Comparison(folder, results).adapter(label)


def load_beside(target: str | Path, base: Base) -> Adapted:
    """As `load`, on a base that is in memory already where it is the same one."""
    return load(target, base=known_base(target, [base]))


def known_base(target: str | Path, bases: Sequence[Base]) -> Base | None:
    """Of bases in memory the one that a target was made for, or is."""
    folder = _saved(target)
    if folder is not None:
        about = _about(folder)
        if about is None:
            return None  # loading says what is wrong with it
        prints = (about["base_fingerprint"], about["renderer_fingerprint"])
        return next((b for b in bases if (b.info.fingerprint, b.renderer.fingerprint) == prints), None)
    # in the data type that it has, whatever the default is
    return next((b for b in bases if str(target) in (b.info.name, b.info.source)), None)
