"""MAWPS as MWPToolkit ships it (JSON lists): a word problem, the equation that solves it, and the number.

The equation, worked out, is the reasoning: `(22 - 14) / 4 = 2`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path


def read(path: Path) -> Iterator[dict[str, str]]:
    """The problems of a file; whole numbers are written without their point."""
    for record in json.loads(Path(path).read_text(encoding="utf-8")):
        side = re.sub(r"^\s*[xX]\s*=\s*|\s*=\s*[xX]\s*$", "", record["equation"])
        side = re.sub(r"\s*([-+*/=])\s*", r" \1 ", re.sub(r"(\d)\.0\b", r"\1", side)).strip()
        answer = f"{float(record['ans']):g}"
        yield {"question": record["original_text"], "reasoning": f"{side} = {answer}", "answer": answer}
