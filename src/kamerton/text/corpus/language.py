"""Language identification by py3langid, whose model is inside its package (BSD licence, 4.6 MB; Lui & Baldwin 2012).

datatrove's own filter downloads a fastText model. Long documents are judged on three samples: beginning, middle, end.
"""

from __future__ import annotations

from typing import Any

from datatrove.data import Document

from kamerton.errors import MissingExtra, RecipeError
from kamerton.text.corpus.options import Language
from kamerton.text.corpus.step import Step, domain_of


class LanguageStep(Step):
    """Documents in the languages that are asked for."""

    def __init__(self, folder: str, label: str, options: Language) -> None:
        super().__init__(folder, label)
        self.options = options
        known = set(identifier().labels)
        for name in options.keep or ():
            if name not in known:
                # of codes of two letters the nearest one says nothing
                raise RecipeError(f"no language {name!r} is known", mend=f"known are: {', '.join(sorted(known))}")

    def judge(self, doc: Document) -> str | None:
        language, probability = identify(doc.text, self.options.characters)
        doc.metadata["language"] = language
        doc.metadata["language_probability"] = round(probability, 4)
        if self.options.keep is not None and language not in self.options.keep:
            return f"language {language}"
        if probability < self.options.probability:
            return "language is not certain"
        self.tally.note(domain_of(doc), f"language {language}")
        return None


_identifier: Any = None


def identifier() -> Any:
    """The identifier, loaded once in a process."""
    global _identifier
    if _identifier is None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise MissingExtra("py3langid", "corpus") from None
        _identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return _identifier


def identify(text: str, characters: int = 3000) -> tuple[str, float]:
    """The language's code and its probability."""
    if len(text) > characters:
        part = characters // 3
        middle = (len(text) - part) // 2
        text = f"{text[:part]}\n{text[middle : middle + part]}\n{text[-part:]}"
    language, probability = identifier().classify(text)
    return str(language), float(probability)
