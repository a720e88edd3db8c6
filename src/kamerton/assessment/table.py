"""The result as lines for a terminal: of each model and temperature the figures that say most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kamerton.assessment.settings import TITLES
from kamerton.assessment.summary import number

SAMPLED = ("self_bleu", "self_bleu_across", "distinct_2", "mauve", "reverse", "length_ratio", "ended")
PLAIN = {"answers": (), "calibration": ("ece: ",), "phrasings": (), "forgetting": ()}
"""Groups that are printed, and what a name has to begin with where not all of it is."""


def rows(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines of name, value and 95% interval."""
    yield from (note for note in result["notes"] if note.startswith("MAUVE") and "tell little" in note)
    for label, model in result["models"].items():
        yield f"{label}: {result['questions']} questions of {result['split']}"
        figures = model["figures"]
        for group, starts in PLAIN.items():
            for name, found in figures.get(group, {}).items():
                if not starts or name.startswith(starts):
                    yield _line(TITLES.get(name, name), found)
        for group, own in figures.items():
            if group.startswith("T="):
                yield f"  samples at temperature {group.removeprefix('T=')}"
                for name in (*result["metrics"], *SAMPLED):
                    if name in own:
                        yield _line(f"  {TITLES.get(name, name)}", own[name], result["references"].get(name))


def _line(name: str, found: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> str:
    beside = f"   references {number(reference['value'])}" if reference else ""
    return f"  {name:42} {number(found['value']):>8}   [{number(found['low'])}, {number(found['high'])}]{beside}"
