"""Files → text: plain text, Markdown, HTML (trafilatura takes the article out of its page) and PDF (pypdf).

A document is a title and parts, each with the page or the heading it stands under. Its identity is its source: the
absolute path of its file. What cannot be read, or holds no text, is an error of one line that names the file; whoever
reads a folder collects these and goes on. It leaves out text recognition in scans, and formats of word processors.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kamerton.errors import KamertonError, MissingExtra
from kamerton.files import expanded, gunzip


class DocumentError(KamertonError):
    """A document that cannot be read."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a document under one heading or on one page.

    Attributes:
        text: what it says.
        heading: the headings above it, outermost first, joined by " › "; "" where there are none.
        page: the page in a PDF, from 1; 0 where there are no pages.
    """

    text: str
    heading: str = ""
    page: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A document as the index takes it.

    Attributes:
        source: its identity: an absolute path, or `name#title` for texts that came with a task's rows.
        title: what it is called, for people and for the search.
        parts: its text; no part is empty.
    """

    source: str
    title: str
    parts: tuple[Part, ...]

    @property
    def hash(self) -> str:
        """SHA-256 over title and text: the same content needs no new vectors."""
        content = json.dumps([self.title, [[p.text, p.heading, p.page] for p in self.parts]], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass
class Found:
    """Files that paths name.

    Attributes:
        files: readable by their suffix, in order, each once.
        named: those of them that were named themselves, not found in a folder.
        others: files in folders that are left out, counted by suffix.
    """

    files: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)

    def note(self) -> str:
        """What was left out, in one line; "" where nothing was."""
        kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.others.most_common())
        return f"left out, of other kinds: {kinds}" if kinds else ""


def find(paths: Iterable[str | Path]) -> Found:
    """The documents that files and folders name; folders are searched through, but for what is hidden in them.

    Raises:
        DocumentError: a path does not exist, or a file of a kind that is not read was named.
    """
    found = Found()
    for given in paths:
        path = expanded(given)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file()]
            for file in inside:
                if any(part.startswith(".") for part in file.relative_to(path).parts):
                    continue
                if kind(file) in READERS:
                    found.files.append(file.resolve())
                else:
                    found.others[file.suffix.lower()] += 1
        elif path.is_file():
            if kind(path) not in READERS:
                mend = f"give one of: {', '.join(READERS)} (each may be packed: .gz)"
                raise DocumentError(f"files of the kind '{path.suffix}' are not read", where=path, mend=mend)
            found.files.append(path.resolve())
            found.named.add(path.resolve())
        else:
            raise DocumentError("no such file or folder", where=path, mend="check the path")
    found.files = list(dict.fromkeys(found.files))
    return found


def kind(path: Path) -> str:
    """The suffix that decides how a file is read, `.gz` aside."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    return suffixes[-2] if len(suffixes) == 2 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]


def read(path: Path) -> Document:
    """Read one document.

    Raises:
        DocumentError: the file cannot be read, or holds no text.
        MissingExtra: the library for its kind is not installed.
    """
    path = path.resolve()
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gunzip(data)
    except FileNotFoundError:
        raise DocumentError("no such file", where=path, mend="remove it from the index, or bring it back") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(f"cannot be read ({error})", where=path, mend="check the file") from None
    title, parts = READERS[kind(path)](data, path)
    kept = tuple(part for part in parts if part.text.strip())
    if not kept:
        mend = "recognise its text first (it may be scanned pages)" if kind(path) == ".pdf" else "remove it, or fill it"
        raise DocumentError("holds no text", where=path, mend=mend)
    name = path.name.removesuffix(".gz").removesuffix(".GZ")
    return Document(path.as_posix(), " ".join(title.split()) or Path(name).stem, kept)


def from_rows(
    rows: Iterable[Mapping[str, Any]], name: str, *, text: str, title: str | None = None
) -> tuple[list[Document], int]:
    """Documents from a column of a table: the distinct texts of one title are one document, in their order.

    Args:
        rows: the table's rows.
        name: of the table; a document's source is `name#title`.
        text: the column with the texts.
        title: the column with the titles; without, every distinct text is a document of its own.

    Returns:
        The documents, and how many rows had no text.

    Raises:
        DocumentError: there is no such column.
    """
    texts: dict[str, dict[str, None]] = {}
    empty = 0
    for number, row in enumerate(rows):
        for column in (text, title):
            if column is not None and column not in row:
                mend = f"use one of: {', '.join(row)}"
                raise DocumentError(f"row {number + 1} has no column '{column}'", where=name, mend=mend)
        content = str(row[text] or "").strip()
        if not content:
            empty += 1
            continue
        called = str(row[title]).strip() if title is not None else hashlib.sha256(content.encode()).hexdigest()[:12]
        texts.setdefault(called, {})[content] = None
    documents = [
        Document(f"{name}#{called}", called.replace("_", " ") if title else "", tuple(Part(t) for t in parts))
        for called, parts in texts.items()
    ]
    return documents, empty


# -- kinds -----------------------------------------------------------------------------------------------------------

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*")


def _plain(data: bytes, path: Path) -> tuple[str, Sequence[Part]]:
    return "", [Part(_decode(data, path))]


def _markdown(data: bytes, path: Path) -> tuple[str, Sequence[Part]]:
    text = _decode(data, path)
    title = ""
    front = re.match(r"---\s*\n(.*?)\n(?:---|\.\.\.)\s*(?:\n|$)", text, re.DOTALL)
    if front is not None:
        named = re.search(r"^title:\s*(.+?)\s*$", front.group(1), re.MULTILINE)
        title = named.group(1).strip("\"'") if named else ""
        text = text[front.end() :]
    return sections(text, title)


def sections(text: str, title: str = "") -> tuple[str, list[Part]]:
    """Markdown cut at its headings: the title (the given one, else the first heading of the first level), the parts."""
    parts: list[Part] = []
    above: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""

    def close() -> None:
        body = "\n".join(lines).strip()
        if body:
            parts.append(Part(body, " › ".join(name for _, name in above if name != title)))
        lines.clear()

    for line in text.splitlines():
        mark = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if mark and (not fence or mark.group(1).startswith(fence)):
            fence = "" if fence else mark.group(1)
        heading = None if fence or mark else _HEADING.fullmatch(line)
        if heading is None:
            lines.append(line)
            continue
        close()
        level, name = len(heading.group(1)), heading.group(2)
        if level == 1 and not title:
            title = name
        above = [(n, above_name) for n, above_name in above if n < level] + [(level, name)]
    close()
    if not parts and above:  # headings are all that there is
        parts.append(Part(" › ".join(name for _, name in above)))
    return title, parts


def _html(data: bytes, path: Path) -> tuple[str, Sequence[Part]]:
    try:
        import trafilatura
    except ImportError:
        raise MissingExtra("trafilatura", "retrieval") from None
    text = trafilatura.extract(data, output_format="markdown", favor_recall=True, include_comments=False)
    if not text:
        raise DocumentError("no text was found in the page", where=path, mend="remove it, or save the page's text")
    about = trafilatura.extract_metadata(data)
    return sections(text, (about.title if about is not None else None) or "")


def _pdf(data: bytes, path: Path) -> tuple[str, Sequence[Part]]:
    import io
    import logging

    try:
        import pypdf
    except ImportError:
        raise MissingExtra("pypdf", "retrieval") from None
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every small fault that it repairs
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            mend = "save it without a password"
            raise DocumentError("is locked by a password", where=path, mend=mend)
        title = (reader.metadata.title if reader.metadata is not None else None) or ""
        return title, [Part(page.extract_text(), page=n) for n, page in enumerate(reader.pages, start=1)]
    except KamertonError:
        raise
    except Exception as error:  # a broken PDF raises nearly anything
        reason = " ".join(str(error).split())[:200]
        mend = "open it in a viewer and save it again"
        raise DocumentError(f"is not a PDF that can be read ({reason})", where=path, mend=mend) from error


def _decode(data: bytes, path: Path) -> str:
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    name = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DocumentError(f"is not {name.upper()}", where=f"{path}:{line}", mend="save it as UTF-8") from None
    if "\0" in text:
        raise DocumentError("is not text (it has zero bytes)", where=path, mend="remove it")
    return text


Reader = Callable[[bytes, Path], tuple[str, Sequence[Part]]]
READERS: dict[str, Reader] = {
    ".txt": _plain, ".text": _plain, ".rst": _plain, ".md": _markdown, ".markdown": _markdown,
    ".html": _html, ".htm": _html, ".xhtml": _html, ".pdf": _pdf,
}  # fmt: skip
"""How a file is read, by its suffix."""
