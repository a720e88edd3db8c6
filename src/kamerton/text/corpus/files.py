"""Files of a run: records as lines, which inputs there are, and who reads which."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton.text.corpus.recipe import CorpusRecipe, SourceSpec

MOST_TASKS = 64
"""A run's inputs are cut into at most so many pieces of work, whatever the number of workers."""

LEAST_BYTES = 400_000
"""Of a piece of work; smaller ones would cost more to set up than to do."""


def line(record: Any) -> bytes:
    """A record as a JSON line."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def lines(path: Path) -> Iterator[Any]:
    """The records of a file of JSON lines; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for row in file:
            yield json.loads(row)


@dataclass(frozen=True, slots=True)
class Input:
    """A file to read: where it is, what it is called in ids, its domain, size and time, and its source's settings."""

    path: Path
    name: str
    domain: str
    size: int
    changed: int
    source: SourceSpec


def inputs(recipe: CorpusRecipe) -> list[Input]:
    """All files of a recipe, in the order of its sources and of their names; a file is read once.

    Raises:
        RecipeError: a source has no files.
    """
    found: dict[Path, Input] = {}
    for number, source in enumerate(recipe.sources):
        before = len(found)
        named = False
        for given in source.path:
            root, files = _matching(recipe.input(given))
            domain = source.domain or recipe.input(source.path[0]).name.split("*")[0].strip("._-") or root.name
            for path in files:
                named = True
                if path not in found:
                    status = path.stat()
                    name = path.relative_to(root).as_posix() if path != root else path.name
                    found[path] = Input(path, name, domain, status.st_size, status.st_mtime_ns, source)
        if len(found) == before:
            what = "all its files belong to sources above" if named else "there are no such files"
            mend = (
                "take the source out" if named else "check the path; a folder, a file or a pattern such as pages/*.html"
            )
            raise recipe.error(("sources", number, "path"), what, mend=mend)
    return list(found.values())


def _matching(path: Path) -> tuple[Path, list[Path]]:
    """The folder that names start from, and the files."""
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        pattern, root = "**/*", path
    else:
        parts = path.parts
        first = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
        if first is None:
            return path.parent, []
        root, pattern = Path(*parts[:first]), "/".join(parts[first:])
    files = sorted(p for p in root.glob(pattern) if p.is_file() and not p.name.startswith("."))
    return root, files


def shares(files: Sequence[Input]) -> list[list[Input]]:
    """The files in pieces of work: neighbours stay together, pieces have about equally many bytes."""
    total = sum(file.size + 1 for file in files)
    count = min(len(files), MOST_TASKS, 1 + total // LEAST_BYTES)
    pieces: list[list[Input]] = [[] for _ in range(count)]
    seen = 0
    for file in files:
        pieces[min(count - 1, seen * count // total)].append(file)
        seen += file.size + 1
    return [piece for piece in pieces if piece]


def buffered(stream: Any) -> io.BufferedReader:
    """Any readable as a buffered one, so that its beginning can be looked at."""
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, 1 << 16)
