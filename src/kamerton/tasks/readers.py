"""Files and hub data sets → rows: plain records that remember their place.

JSON lines, JSON, CSV, TSV, Parquet, CoNLL columns and lines by a pattern, each plain or gzipped; hub ids through
`datasets`. A broken record is an error that names file and line; nothing is skipped. Everything is held in memory: task
data are small.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamerton.errors import TaskError
from kamerton.files import MOST_UNPACKED, gunzip, parse_json
from kamerton.functions import import_function, is_function
from kamerton.recipe import DataSpec, TaskSpec
from kamerton.recipe_errors import closest
from kamerton.tasks.halves import halves_note, replace_halves
from kamerton.tasks.layouts import LAYOUTS, RECORDS, conll_sentences

_SUFFIXES = {f".{kind}": kind for kind in ("jsonl", "json", "csv", "tsv", "parquet", "conll")} | {".ndjson": "jsonl"}


MOST_ROWS = 50_000_000
"""Of a Parquet file: rows that all are the same take no bytes in it."""
NAMES = {";": "semicolons", "\t": "tabs"}
"""What separates columns where it is not a comma."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record. `place` is `file:line` (or `file, record n` where lines mean nothing), for errors and ids."""

    values: dict[str, Any]
    place: str


def read_files(spec: TaskSpec, names: tuple[str, ...], path: tuple[str, ...], notes: list[str]) -> list[Row]:
    """All rows of some files or globs, in the order given; `path` is their field in the task, for errors.

    What was found out about a file and not said in the recipe is added to `notes`.

    Raises:
        TaskError: a file is missing, broken, or has no records.
    """
    rows: list[Row] = []
    for name in names:
        for file in _expand(spec, name, path):
            found = list(_read_file(spec, file, notes))
            if not found:
                raise TaskError("has no records", where=shown(file), mend="check the file, or name another one")
            rows += found
    return rows


def read_hub(spec: TaskSpec, data: DataSpec) -> dict[str, list[Row]]:
    """The rows of a hub data set (or of a folder in the hub's layout) by our split names.

    `splits` maps our names to the set's; without it, splits that are called train, validation and test are taken. Class
    numbers become the class names that the set gives them.

    Raises:
        TaskError: it cannot be loaded, or has no such split.
    """
    import datasets  # slow to import, and only hub ids need it

    hub = str(data.hub)
    # a path in the recipe's folder is told from an id by being there
    target = str(spec.resolve(hub)) if spec.resolve(hub).is_dir() else hub
    try:
        loaded = datasets.load_dataset(target, data.config, revision=data.revision)
    except Exception as error:  # the library raises a dozen unrelated types for network, id, config and content
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        message = f"{hub} cannot be loaded: {reason}"
        mend = "check the id and the network, or give a local copy with --data FOLDER"
        if "script" in reason.lower():
            mend = "add revision: refs/convert/parquet, or give a local copy with --data FOLDER"
        raise spec.error(("data", "hub"), message, mend=mend) from error
    wanted = dict(data.splits) or {name: name for name in ("train", "validation", "test") if name in loaded}
    rows: dict[str, list[Row]] = {}
    for ours, theirs in wanted.items():
        if theirs not in loaded:
            field = ("data", "splits", ours)
            raise spec.error(field, f"{hub} has no split {theirs!r}", mend=closest(theirs, loaded))
        table = loaded[theirs]
        inner = {n: getattr(f, "feature", f) for n, f in table.features.items()}  # of a list: its items' (tags)
        classes = {n: f for n, f in inner.items() if isinstance(f, datasets.ClassLabel)}
        rows[ours] = [
            Row(_class_names(record, classes), f"{hub} {theirs}, record {number}")
            for number, record in enumerate(table, start=1)
        ]
    if spec.reader in RECORDS:
        rows = {name: list(_records(spec, part)) for name, part in rows.items()}
    return rows


def mended(rows: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows without halves of surrogate pairs; and a note where there were any."""
    total, first = 0, ""
    out: dict[str, list[Row]] = {}
    for name, part in rows.items():
        out[name] = []
        for row in part:
            try:
                values, count = replace_halves(row.values)
            except RecursionError:
                raise _too_deep(row.place) from None
            out[name].append(Row(values, row.place) if count else row)
            total, first = total + count, first or (row.place if count else "")
    return out, [halves_note(total, first)] if total else []


def _too_deep(place: str) -> TaskError:
    return TaskError("is nested too deeply", where=place, mend="write it with fewer levels")


def shown(path: Path) -> str:
    """A path as people write it: relative where it lies below the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _class_names(record: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    def name(feature: Any, value: Any) -> Any:
        if isinstance(value, list):
            return [name(feature, one) for one in value]
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None  # -1: no label

    return {key: name(classes[key], value) if key in classes else value for key, value in record.items()}


def _expand(spec: TaskSpec, name: str, path: tuple[str, ...]) -> list[Path]:
    file = spec.resolve(name)
    if file.is_file():
        return [file]
    if file.is_dir():
        raise spec.error(path, f"{name} is a folder", mend=f"name its files, such as {name.rstrip('/')}/*.jsonl")
    if any(mark in name for mark in "*?["):
        found = sorted(Path(match) for match in glob.glob(str(file), recursive=True) if Path(match).is_file())
        if found:
            return found
        raise spec.error(path, f"no file matches {name}", mend=f"check the pattern; it was looked up as {file}")
    near = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    mend = closest(file.name, near) if near else "check the path; it starts from the recipe's folder"
    raise spec.error(path, f"no such file: {file}", mend=mend)


def _records(spec: TaskSpec, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows whose reader takes them one at a time."""
    change = RECORDS[str(spec.reader)]
    for row in rows:
        yield Row(change(spec, row.values, row.place), row.place)


def _read_file(spec: TaskSpec, file: Path, notes: list[str]) -> Iterator[Row]:
    if spec.reader in RECORDS:
        yield from _records(spec, _by_format(spec, file, notes))
    elif spec.reader is not None:
        yield from _custom(spec, file)
    else:
        yield from _by_format(spec, file, notes)


def _by_format(spec: TaskSpec, file: Path, notes: list[str]) -> Iterator[Row]:
    kind = spec.format
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() != ".gz"]
    if kind == "auto":
        last = suffixes[-1] if suffixes else ""
        if last not in _SUFFIXES:
            known = ", ".join(sorted(_SUFFIXES))
            message = f"the format of {file.name} is not known by its suffix"
            raise spec.error(("format",), message, mend=f"set format: (known suffixes: {known})")
        kind = _SUFFIXES[last]  # type: ignore[assignment]
    if kind == "parquet":
        yield from _parquet(file)
    elif kind == "jsonl":
        yield from _json_lines(_text(spec, file), file)
    elif kind == "json":
        yield from _json(spec, _text(spec, file), file)
    elif kind == "lines":
        yield from _lines(spec, _text(spec, file), file)
    elif kind == "conll":
        for values, line in conll_sentences(_text(spec, file), shown(file)):
            yield Row(values, f"{shown(file)}:{line}")
    else:
        yield from _table(spec, _text(spec, file), file, kind, notes)


def _text(spec: TaskSpec, file: Path) -> str:
    """The file as text; a byte that does not fit the encoding is an error with its line."""
    try:
        data = file.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"cannot be read: {error}", where=shown(file), mend="check the file") from None
    name = spec.encoding.lower()
    try:
        if name in ("cesu-8", "cesu8"):
            # UTF-8 whose emoji are written as two surrogates of three bytes each, as older Java programs do
            pairs = data.decode("utf-8", "surrogatepass")
            return pairs.encode("utf-16", "surrogatepass").decode("utf-16")
        return data.decode("utf-8-sig" if name in ("utf-8", "utf8") else spec.encoding)
    except LookupError:
        mend = "use a name that Python knows, such as utf-8, utf-16, cp1251, latin-1 or cesu-8"
        raise spec.error(("encoding",), f"unknown encoding {spec.encoding!r}", mend=mend) from None
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data[:start].count(b"\n") + 1
        where = f"{shown(file)}:{line}"
        mend = "save it as UTF-8, or set encoding: to what it is (cp1251, latin-1, utf-16, …)"
        if data[start : start + 1] == b"\xed":
            mend = "set encoding: cesu-8 (it has emoji written as surrogate pairs)"
        raise TaskError(f"is not {spec.encoding}", where=where, mend=mend) from None


def _record(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        message = f"the record is {_kind(value)}, not an object"
        raise TaskError(message, where=place, mend='write each record as {"column": value, …}')
    return Row(value, place)


def _kind(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _json_lines(text: str, file: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{shown(file)}:{number}"
            try:
                value = parse_json(line)
            except json.JSONDecodeError as error:
                message = f"broken JSON at column {error.colno}: {error.msg}"
                raise TaskError(message, where=place, mend="write one complete JSON object a line") from None
            except RecursionError:
                raise _too_deep(place) from None
            yield _record(value, place)


def _json(spec: TaskSpec, text: str, file: Path) -> Iterator[Row]:
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        # JSON lines are often saved as .json; they fail at the second record and nowhere else
        if error.msg == "Extra data" and spec.format == "auto" and spec.field is None:
            yield from _json_lines(text, file)
            return
        where = f"{shown(file)}:{error.lineno}"
        mend = "mend the JSON at that line (a missing comma, quote or bracket)"
        raise TaskError(f"broken JSON: {error.msg} (column {error.colno})", where=where, mend=mend) from None
    except RecursionError:
        raise _too_deep(shown(file)) from None
    for step in spec.field.split(".") if spec.field else ():
        if not isinstance(value, dict) or step not in value:
            message = f"{shown(file)} has no field {step!r}"
            raise spec.error(("field",), message, mend=closest(step, value if isinstance(value, dict) else ()))
        value = value[step]
    if isinstance(value, dict):
        nested = [key for key, item in value.items() if isinstance(item, list)]
        mend = f"set field: {nested[0]}" if nested else "write the records as a list"
        raise TaskError("is an object, not a list of records", where=shown(file), mend=mend)
    if not isinstance(value, list):
        raise TaskError(f"is {_kind(value)}, not a list of records", where=shown(file), mend="write [{…}, {…}]")
    for number, item in enumerate(value, start=1):
        yield _record(item, f"{shown(file)}, record {number}")


def _table(spec: TaskSpec, text: str, file: Path, kind: str, notes: list[str]) -> Iterator[Row]:
    delimiter = spec.delimiter or ("\t" if kind == "tsv" else _delimiter(spec, text))
    if spec.delimiter is None and kind == "csv" and delimiter != ",":
        notes.append(f"{shown(file)}: columns are separated by {NAMES[delimiter]}, as its header shows")
    # tab-separated files of this field (GLUE, SWAG) have plain quotes in their text, comma-separated ones quote by them
    quotes = spec.quotes if spec.quotes is not None else kind == "csv"
    csv.field_size_limit(sys.maxsize)
    style: Any = {"quoting": csv.QUOTE_MINIMAL, "strict": True} if quotes else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **style)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            place, start = f"{shown(file)}:{start}", reader.line_num + 1
            if not cells or cells == [""]:
                continue
            if header is None and spec.header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    mend = "rename one of them, or set header: false"
                    raise TaskError(f"column {twice!r} is there twice", where=place, mend=mend)
                continue
            names = header or [str(n) for n in range(len(cells))]
            if len(cells) != len(names):
                message = f"has {len(cells)} columns where the header has {len(names)}"
                mend = f"quote text that contains {delimiter!r}" if quotes else "remove the extra separator"
                raise TaskError(message, where=place, mend=mend)
            yield Row(dict(zip(names, cells, strict=True)), place)
    except csv.Error as error:
        mend = 'write " inside a quoted text as "", or set quotes: false if the file does not quote'
        raise TaskError(f"broken CSV: {error}", where=f"{shown(file)}:{start}", mend=mend) from None


def _delimiter(spec: TaskSpec, text: str) -> str:
    """What separates the columns of a CSV file: a comma, unless its header has none and has another separator.

    Spreadsheets write semicolons where a comma is the decimal sign, and some write tabs whatever the file is called.
    """
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    if not spec.header or "," in header:
        return ","
    return max((mark for mark in NAMES if mark in header), key=header.count, default=",")


def _lines(spec: TaskSpec, text: str, file: Path) -> Iterator[Row]:
    if spec.pattern is None:
        mend = r"such as pattern: '(?P<label>\d) (?P<text>.*)'"
        raise spec.error(("format",), "format: lines needs a pattern that names the columns", mend=mend)
    try:
        pattern = re.compile(spec.pattern)
    except re.error as error:
        raise spec.error(("pattern",), f"is not a regular expression: {error}", mend="mend the pattern") from None
    if not pattern.groupindex:
        raise spec.error(("pattern",), "names no columns", mend="name groups: (?P<text>.*)")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            match = pattern.fullmatch(line.rstrip("\r"))
            if match is None:
                where = f"{shown(file)}:{number}"
                raise TaskError("does not match the pattern", where=where, mend="mend the line or the pattern")
            yield Row(dict(match.groupdict()), f"{shown(file)}:{number}")


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        groups = [table.metadata.row_group(n) for n in range(table.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > MOST_UNPACKED or table.metadata.num_rows > MOST_ROWS:
            message = f"unpacks to more than {MOST_UNPACKED:,} bytes or {MOST_ROWS:,} rows"
            raise TaskError(message, where=shown(file), mend="write it in several files")
        records = table.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # text in it may be no UTF-8
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TaskError(f"is not Parquet: {reason}", where=shown(file), mend="write the file again") from None
    for number, record in enumerate(records, start=1):
        yield Row(record, f"{shown(file)}, record {number}")


def _custom(spec: TaskSpec, file: Path) -> Iterator[Row]:
    """A layout by name, or a function of the user's own: file → dictionaries."""
    name = str(spec.reader)
    if name in LAYOUTS:
        text = _text(spec, file)
        try:
            records = LAYOUTS[name](text)
        except json.JSONDecodeError as error:
            where = f"{shown(file)}:{error.lineno}"
            raise TaskError(f"broken JSON: {error.msg}", where=where, mend="mend the JSON at that line") from None
        except (KeyError, TypeError, AttributeError):
            message = f"is not in the layout that reader: {name} reads"
            raise TaskError(message, where=shown(file), mend="check the file or the reader") from None
        for number, record in enumerate(records, start=1):
            yield Row(record, f"{shown(file)}, record {number}")
    elif is_function(name):
        module, _, function = name.rpartition(":")
        module = str(spec.resolve(module)) if module.endswith(".py") else module
        for number, record in enumerate(import_function(f"{module}:{function}")(file), start=1):
            yield _record(record, f"{shown(file)}, record {number}")
    else:
        mend = f"{closest(name, [*LAYOUTS, *RECORDS])}, or name a function: package.module:function"
        raise spec.error(("reader",), f"unknown reader {name!r}", mend=mend)
