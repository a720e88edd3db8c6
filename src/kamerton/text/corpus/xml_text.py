"""The text of XML. TEI: what stands in `<text>`, without the header, notes and page breaks, a line for each block.

In a play every speech begins with its speaker's name on a line of its own; lines of verse are lines. Other XML: all its
text, a line for each element that holds text. Entities that a file defines are not expanded and nothing is fetched.
"""

from __future__ import annotations

import re
from typing import Any

from kamerton.errors import MissingExtra
from kamerton.text.corpus.kinds import SHOWN, Found

LEFT_OUT = {"teiHeader", "note", "fw", "standOff", "facsimile", "listPerson", "bibl", "script", "style"}
BLOCKS = {
    "div", "p", "l", "lg", "sp", "speaker", "stage", "head", "item", "castItem", "castGroup", "castList", "set", "lb",
    "titlePart", "docTitle", "docAuthor", "titlePage", "epigraph", "quote", "row", "trailer", "salute", "signed",
    "opener", "closer", "argument", "byline", "front", "body", "back", "ab", "table", "list", "cit",
}  # fmt: skip
APART = {"div", "sp", "lg", "castList", "front", "body", "back", "table", "list"}
"""Blocks with an empty line around them."""
_SPACE = re.compile(r"\s+")
_EDGE = "\0"
"""Stands for a line end until all are known; XML cannot hold it."""
_BREAK = re.compile("[ \n\0]*[\n\0][ \n\0]*")


def as_text(data: bytes) -> Found:
    """An XML file as a document; one that is not well-formed is rejected."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingExtra("lxml", "corpus") from None
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        reason = "is not well-formed XML" if "Excessive depth" not in str(error) else "is XML nested too deeply"
        return Found(data[:SHOWN].decode("utf-8", "replace"), len(data), "xml", reason=reason)
    if root is None:
        return Found("", len(data), "xml", reason="is not well-formed XML")
    tei = _name(root) in ("TEI", "teiCorpus")
    return Found(
        tei_text(root) if tei else plain_text(root), len(data), "text", about={"format": "tei" if tei else "xml"}
    )


def _name(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def tei_text(root: Any) -> str:
    """The text of a TEI document."""
    texts = [part for part in root.iter() if _name(part) == "text"]
    tops = [part for part in texts if not any(_name(above) == "text" for above in part.iterancestors())]
    out: list[str] = []
    for top in tops:
        _walk(top, out)
    return _tidy("".join(out))


def _walk(element: Any, out: list[str]) -> None:
    """Text with line ends around blocks, without recursion: a document may be nested deeply."""
    stack: list[tuple[Any, bool]] = [(element, False)]
    while stack:
        node, closing = stack.pop()
        name = _name(node)
        edge = "\n\n" if name in APART else _EDGE if name in BLOCKS else ""
        if closing:
            out.append(edge)
            if node is not element and node.tail:
                out.append(_SPACE.sub(" ", node.tail))
            continue
        if name in LEFT_OUT or not name:
            if node is not element and node.tail:
                out.append(_SPACE.sub(" ", node.tail))
            continue
        out.append(edge)
        if node.text:
            out.append(_SPACE.sub(" ", node.text))
        stack.append((node, True))
        stack.extend((child, False) for child in reversed(node))


def _tidy(text: str) -> str:
    # edges of blocks that meet are one line end, or an empty line where one of the blocks stands apart
    return _BREAK.sub(lambda edges: "\n\n" if "\n" in edges.group() else "\n", text).strip()


def plain_text(root: Any) -> str:
    """All text of other XML, one line for each element that has some."""
    out: list[str] = []
    for node in root.iter():
        # what is no element is an entity that is not expanded
        for part in (node.text if _name(node) and _name(node) not in LEFT_OUT else None, node.tail):
            line = _SPACE.sub(" ", part or "").strip()
            if line:
                out.append(line)
    return "\n".join(out)
