"""Writes the report's files into the comparison folder, each of them atomically."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from kamerton.comparison.report.data import load_comparison
from kamerton.comparison.report.page import page
from kamerton.comparison.report.results import results, results_csv, verdict_of
from kamerton.comparison.report.tables import latex_table, markdown_table


def write_report(folder: str | Path) -> Path:
    """Write results.json, results.csv, table.md, table.tex and report.html into a comparison folder.

    The comparison need not be finished: the report says how much of it is there.

    Returns:
        The path of report.html.

    Raises:
        KamertonError: the folder does not exist, or a file in it is broken.
    """
    comparison = load_comparison(folder)
    verdict = verdict_of(comparison)
    found = results(comparison, verdict)
    target = comparison.folder
    _write(target / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _write(target / "results.csv", results_csv(found))
    _write(target / "table.md", markdown_table(comparison, found))
    _write(target / "table.tex", latex_table(comparison, found))
    _write(target / "report.html", page(comparison, verdict, found))
    return target / "report.html"


def _write(path: Path, content: str) -> None:
    # half a surrogate pair in an answer cannot be encoded; inside JSON its escape is the same character
    data = content.encode("utf-8", errors="backslashreplace")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
