"""Several models in memory at once: `load_together` loads what they share only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kamerton.base import Base
from kamerton.base.load import DtypeName
from kamerton.errors import KamertonError
from kamerton.methods.method import Adapted
from kamerton.targets import known_base, load


def load_together(
    targets: Sequence[str | Path], *, report: Callable[[str], None] = lambda _: None, dtype: DtypeName = "auto"
) -> dict[str, Adapted]:  # fmt: skip
    """Load several targets; methods over the same base share its weights.

    Args:
        targets: what `load` takes, each alone or as `NAME=TARGET`; without a name a target is called by the last part
            of its path.
        report: told what is being loaded.
        dtype: data type of bases, as in `load`.

    Returns:
        The models by name, in the order given.

    Raises:
        KamertonError: two of one name, or one that cannot be loaded.
    """
    named: dict[str, str] = {}
    for target in map(str, targets):
        name, place = split_name(target)
        if name in named:
            raise KamertonError(
                f"two models are called {name!r}: {named[name]} and {place}", mend=f"name one: other={place}"
            )
        named[name] = place
    bases: list[Base] = []
    models: dict[str, Adapted] = {}
    for name, place in named.items():
        report(f"loading {name}")
        adapted = load(place, base=known_base(place, bases), dtype=dtype)
        shared = next((base for base in bases if base.info.fingerprint == adapted.base.info.fingerprint), None)
        if shared is None:
            shared = adapted.base
            bases.append(shared)
        adapted.engine.model.share_weights(shared.model)
        models[name] = adapted
    return models


def split_name(target: str) -> tuple[str, str]:
    """`NAME=TARGET` as name and target; a target alone is called by the last part of its path.

    Raises:
        KamertonError: a name without anything behind it, or nothing at all.
    """
    name, equals, place = target.partition("=")
    if not equals or Path(target).exists():  # a path may hold the sign
        name, place = Path(target).name or str(Path(target).resolve().name), target
    if not name.strip() or not place.strip():
        raise KamertonError(f"{target!r} names no model", mend="write TARGET or NAME=TARGET")
    return name.strip(), place.strip()
