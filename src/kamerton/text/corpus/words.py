"""Words and sentences by a regular expression, as a tokenizer that datatrove's filters take.

datatrove's own tokenizers want spaCy or models that are downloaded. Scripts without spaces between words are cut into
single characters here.
"""

from __future__ import annotations

import re

from datatrove.utils.word_tokenizers import WordTokenizer

_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LETTERS = rf"(?:(?![{_ALONE}])\w)+"
_INSIDE = r"(?:['’\-]|(?<=\d)[.,](?=\d))"
_WORD = re.compile(rf"[{_ALONE}]|{_LETTERS}(?:{_INSIDE}{_LETTERS})*|(?<!\S)[^\w\s]+(?!\S)")
_END = re.compile(r"(?<=[.!?…])[\"'”»)\]]*\s+(?=[^\s\d])|(?<=[。！？])|\n+")


class Words(WordTokenizer):
    """Words: letters and digits, with apostrophes and hyphens inside, numbers with their points.

    Other signs are a word only where spaces stand around them: papers that count words cut texts at spaces. (spaCy's
    tokens, which datatrove takes, count every comma: a fifth of the "words" of a play then have no letters.)
    """

    def __init__(self, language: str = "en") -> None:
        super().__init__(language)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words) and other.language == self.language

    def __hash__(self) -> int:
        return hash(("kamerton", self.language))

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return _WORD.findall(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Beginning and end of each sentence."""
        ends = [match.end() for match in _END.finditer(text) if 0 < match.end() < len(text)]
        return list(zip([0, *ends], [*ends, len(text)], strict=True))

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences of a text."""
        return [part for a, b in self.span_tokenize(text) if (part := text[a:b].strip())]
