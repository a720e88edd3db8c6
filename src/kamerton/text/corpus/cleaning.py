"""Repair and normalisation: mojibake (ftfy, through datatrove's step), Unicode form, spaces, control characters."""

from __future__ import annotations

import re
import unicodedata

from datatrove.data import Document

from kamerton.errors import MissingExtra
from kamerton.text.corpus.options import Length, Normalise, Repair
from kamerton.text.corpus.step import Step


class RepairStep(Step):
    """datatrove's FTFY formatter: only what is broken is changed, not how texts are written."""

    def __init__(self, folder: str, label: str, options: Repair) -> None:  # noqa: ARG002
        super().__init__(folder, label)
        try:
            from datatrove.pipeline.formatters.ftfy import FTFYFormatter

            self.formatter = FTFYFormatter()
        except ImportError:
            raise MissingExtra("ftfy", "corpus") from None

    def judge(self, doc: Document) -> str | None:
        doc.text = self.formatter.format(doc.text)
        return None


_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# control characters but line ends and tabs; soft hyphens, invisible spaces, byte order marks, direction marks are not
# text either. Zero-width joiners are: Persian, Indic scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
_SPACES = re.compile("[^\\S\n]+")
_EDGES = re.compile(" ?\n ?")


def normalise(text: str, options: Normalise) -> str:
    """The text in one form; doing it again changes nothing."""
    text = _BREAKS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    if options.form != "none" and not unicodedata.is_normalized(options.form, text):
        text = unicodedata.normalize(options.form, text)
    text = _EDGES.sub("\n", _SPACES.sub(" ", text))
    most = options.empty_lines + 1
    return re.sub(f"\n{{{most + 1},}}", "\n" * most, text).strip()


class NormaliseStep(Step):
    """One form for all texts."""

    def __init__(self, folder: str, label: str, options: Normalise) -> None:
        super().__init__(folder, label)
        self.options = options

    def judge(self, doc: Document) -> str | None:
        doc.text = normalise(doc.text, self.options)
        return None


class LengthStep(Step):
    """Documents that are too short or too long."""

    def __init__(self, folder: str, label: str, options: Length) -> None:
        super().__init__(folder, label)
        self.options = options

    def judge(self, doc: Document) -> str | None:
        size = len(doc.text.strip())
        if size < self.options.fewest:
            return f"shorter than {self.options.fewest:,} characters"
        if self.options.most is not None and size > self.options.most:
            return f"longer than {self.options.most:,} characters"
        return None
