"""Judgements from outside: a trained classifier's probability, and lists of words that the user brings."""

from __future__ import annotations

import re
from pathlib import Path

from datatrove.data import Document

from kamerton.errors import KamertonError
from kamerton.recipe_errors import closest
from kamerton.text.corpus.classifier import TextClassifier
from kamerton.text.corpus.options import Classifier, WordList
from kamerton.text.corpus.step import Step


class ClassifierStep(Step):
    """Documents by a classifier's probability of a label, which they carry from then on."""

    def __init__(self, folder: str, label: str, options: Classifier) -> None:
        super().__init__(folder, label)
        self.options = options
        self.model: TextClassifier | None = TextClassifier.load(options.path)
        asked = options.keep or options.drop or ""
        if asked not in self.model.labels:
            raise KamertonError(f"the classifier has no label {asked!r}", mend=closest(asked, self.model.labels))
        self.index = self.model.labels.index(asked)
        self.model = None  # not sent to workers: each loads it

    def judge(self, doc: Document) -> str | None:
        if self.model is None:
            self.model = TextClassifier.load(self.options.path)
        probability = float(self.model.probabilities(doc.text)[self.index])
        doc.metadata[f"{self.options.label}_probability"] = round(probability, 4)
        if self.options.keep is not None:
            return None if probability >= self.options.probability else f"{self.options.label}: not {self.options.keep}"
        return None if probability < self.options.probability else f"{self.options.label}: {self.options.drop}"


_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class WordListStep(Step):
    """Documents with listed words. Case is ignored; a phrase matches its words in a row."""

    def __init__(self, folder: str, label: str, options: WordList) -> None:
        super().__init__(folder, label)
        self.options = options
        path = Path(options.path)
        try:
            listed = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KamertonError(f"{path}: the word list cannot be read ({error})", mend="give a UTF-8 file") from None
        phrases = {tuple(_WORD.findall(row.casefold())) for row in listed if not row.startswith("#")} - {()}
        if not phrases:
            raise KamertonError(f"{path}: the word list is empty", mend="write one word or phrase a line")
        self.lengths = sorted({len(phrase) for phrase in phrases})
        self.phrases = {" ".join(phrase) for phrase in phrases}

    def judge(self, doc: Document) -> str | None:
        words = _WORD.findall(doc.text.casefold())
        found: dict[str, int] = {}
        for length in self.lengths:
            for at in range(len(words) - length + 1):
                phrase = " ".join(words[at : at + length]) if length > 1 else words[at]
                if phrase in self.phrases:
                    found[phrase] = found.get(phrase, 0) + 1
        count = sum(found.values())
        if count >= self.options.matches and count >= self.options.share * len(words):
            doc.metadata["listed_words"] = found
            return "listed words"
        return None
