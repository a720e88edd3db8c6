"""The main text of a page: trafilatura (Barbaresi 2021), without comments, navigation and advertising.

datatrove's own extractor is not used: it drops a page that takes longer than a second (so that results depend on the
machine's load), removes segments that it saw in earlier pages of the same process (so that they depend on the number of
workers), and says nothing of what it dropped.
"""

from __future__ import annotations

from datatrove.data import Document

from kamerton.errors import MissingExtra
from kamerton.text.corpus.options import Extract
from kamerton.text.corpus.step import Step


class ExtractStep(Step):
    """Pages → their text."""

    def __init__(self, folder: str, label: str, options: Extract) -> None:
        super().__init__(folder, label)
        self.options = options

    def judge(self, doc: Document) -> str | None:
        if doc.metadata.get("kind") != "html":
            return None
        try:
            text = page_text(doc.text, self.options)
        except (ValueError, TypeError, AttributeError, RecursionError, LookupError, AssertionError) as error:
            return f"extraction failed ({type(error).__name__})"
        if not text or not text.strip():
            return "no main text"
        doc.text = text
        doc.metadata["kind"] = "text"
        return None


def page_text(page: str, options: Extract) -> str | None:
    """The text of a page, None where there is none."""
    try:
        import trafilatura
    except ImportError:
        raise MissingExtra("trafilatura", "corpus") from None
    if options.keep == "all":
        return trafilatura.html2txt(page)
    return trafilatura.extract(
        page, include_comments=False, include_tables=options.tables,
        favor_precision=options.prefer == "precision", favor_recall=options.prefer == "recall",
    )  # fmt: skip
