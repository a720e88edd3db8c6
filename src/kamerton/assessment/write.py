"""Write what was measured: `fidelity.json`, `samples.jsonl`, and the page `fidelity.html`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kamerton.assessment.page import page
from kamerton.assessment.summary import sentences
from kamerton.files import write_json, write_jsonl, write_text
from kamerton.outcome import Outcome


@dataclass(frozen=True)
class Fidelity(Outcome):
    """What was measured of one model, or of two.

    Attributes:
        folder: holds the files and the judges.
        results: what is in `fidelity.json`.
    """

    page: ClassVar[str] = "fidelity.html"

    @property
    def sentences(self) -> list[str]:
        """The comparison and the warnings in words."""
        return sentences(self.results)

    def __str__(self) -> str:
        return "\n".join(self.sentences) or "None of the figures warns of anything."


def write(folder: Path, result: dict[str, Any], samples: list[dict[str, Any]]) -> Fidelity:
    """Write all files, each whole or not at all; the page last."""
    result = finite(result)
    write_jsonl(folder / "samples.jsonl", samples)
    write_json(folder / "fidelity.json", result)
    # what was written is what is shown
    read = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))
    write_text(folder / "fidelity.html", page(read))
    return Fidelity(folder, read)


def finite(value: Any) -> Any:
    """JSON has no infinities: they become null, everywhere."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
