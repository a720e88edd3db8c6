"""The steps of a corpus by name, and their options. Nothing heavy is imported here.

Numbers of published rules are their papers' (or, where a paper gives none, those of datatrove's implementation), each
named in docs/corpus.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kamerton.recipe_task import Count, Name, Names, Part, listed, not_bool

Share = Annotated[float, BeforeValidator(not_bool), Field(ge=0, le=1)]
Number = Annotated[float, BeforeValidator(not_bool), Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(not_bool), Field(ge=0)]


class Extract(Part):
    """Main text of HTML (trafilatura); everything else passes (the text of XML is taken when it is read).

    `keep: all` takes all visible text of a page in place of its main text.
    """

    keep: Literal["main", "all"] = "main"
    tables: bool = True
    prefer: Literal["balance", "precision", "recall"] = "balance"


class Repair(Part):
    """Mojibake is undone (ftfy), left-over entities are decoded."""


class Normalise(Part):
    """NFC (or another form), plain spaces, no control characters, at most so many empty lines in a row."""

    form: Literal["NFC", "NFKC", "none"] = "NFC"
    empty_lines: Whole = 1


class Length(Part):
    """Documents outside of a length in characters are rejected."""

    fewest: Whole = 1
    most: Count | None = None


class Worded(Part):
    """Options of rules that look at words."""

    language: Name = "en"


class GopherQuality(Worded):
    """Rules of Rae et al. 2021 (arXiv 2112.11446), A1.1."""

    min_words: Whole = 50
    max_words: Count = 100_000
    min_mean_word: Number = 3
    max_mean_word: Number = 10
    max_symbols: Number = 0.1
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_alphabetic_words: Share = 0.8
    min_stop_words: Whole = 2
    stop_words: Names | None = None


class GopherRepetition(Worded):
    """Rules of Rae et al. 2021, Table A1."""

    lines: Share = 0.3
    paragraphs: Share = 0.3
    line_characters: Share = 0.2
    paragraph_characters: Share = 0.2
    top: dict[int, Share] = Field({2: 0.2, 3: 0.18, 4: 0.16})
    duplicated: dict[int, Share] = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1})


class C4Quality(Worded):
    """Rules of Raffel et al. 2020 (JMLR 21/140), section 2.2: lines first, then the page."""

    end_marks: bool = True
    min_words_in_line: Whole = 3
    min_sentences: Whole = 5
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True
    citations: bool = True


class FineWebQuality(Worded):
    """Rules of Penedo et al. 2024 (arXiv 2406.17557), section 3.6."""

    min_lines_with_end_mark: Share = 0.12
    max_short_lines: Share = 0.67
    short_line: Count = 30
    max_repeated_line_characters: Share = 0.01
    max_new_lines_to_words: Number = 0.3


class Language(Part):
    """The language that py3langid finds; documents in others, or below a probability, are rejected."""

    keep: Names | None = None
    probability: Share = 0.5
    characters: Count = 3000

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {"keep": data} if isinstance(data, (str, list)) else data


class Classifier(Part):
    """A trained classifier's probability of a label: `keep` it from `probability` on, or `drop` it from there on."""

    path: Name
    keep: Name | None = None
    drop: Name | None = None
    probability: Share = 0.5
    label: Name = "classifier"

    @model_validator(mode="after")
    def _one(self) -> Classifier:
        if (self.keep is None) == (self.drop is None):
            raise ValueError("needs one of keep and drop; write keep: LABEL")
        return self


class WordList(Part):
    """Words and phrases of a file, one a line: a document with `matches` of them, or that `share` of its words."""

    path: Name
    matches: Count = 1
    share: Share = 0

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "path")


class Mask(Part):
    """Personal data become `[EMAIL]`, `[PHONE]`, `[IP]`, `[CARD]`."""

    kinds: tuple[Literal["email", "phone", "ip", "card"], ...] = ("email", "phone", "ip", "card")


class TestSet(Part):
    """A task recipe whose test set is looked for; `data` is a local copy of its data, a folder or a file."""

    recipe: Name
    data: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return cls._short(data, "recipe")


class Decontaminate(Part):
    """Documents that share `words` words in a row with a test set are rejected; the sets are those of task recipes."""

    recipes: Annotated[tuple[TestSet, ...], BeforeValidator(listed)]
    words: Count = 13
    splits: tuple[Literal["train", "validation", "test"], ...] = ("test",)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: object) -> object:
        return {"recipes": data} if isinstance(data, (str, list)) else data


class ExactDuplicates(Part):
    """The first of equal documents stays; `fold` ignores case, spaces and punctuation."""

    fold: bool = False


class NearDuplicates(Part):
    """MinHash over sets of `words` words in a row, in `bands` of `rows`; pairs from an estimated `similarity` on.

    Documents with fewer than `fewest` words are not compared: two short texts share some words in a row by chance.
    """

    words: Count = 3
    bands: Annotated[int, BeforeValidator(not_bool), Field(gt=0, le=1000)] = 100
    rows: Annotated[int, BeforeValidator(not_bool), Field(gt=0, le=64)] = 3
    similarity: Share = 0.25
    fewest: Count = 20


class RepeatedLines(Part):
    """Lines (or paragraphs) that stand in `documents` documents or more are cut from all but the first.

    Those with fewer than `characters` letters are left.
    """

    unit: Literal["line", "paragraph"] = "line"
    documents: Annotated[int, BeforeValidator(not_bool), Field(ge=2)] = 3
    characters: Count = 20
    keep: Literal["first", "none"] = "first"


class Mix(Part):
    """Documents are sampled so that domains have these shares of the bytes; `repeat`: a document's most copies."""

    weights: dict[str, Annotated[float, BeforeValidator(not_bool), Field(gt=0, allow_inf_nan=False)]] | None = None
    repeat: Annotated[int, BeforeValidator(not_bool), Field(ge=1, le=100)] = 1
    bytes: Count | None = None
    seed: Whole = 0


@dataclass(frozen=True, slots=True)
class Known:
    """A step that exists: its options, where its class is, what it does, and whether it sees the whole corpus."""

    options: type[Part]
    place: str
    summary: str
    whole: bool = False


_HERE = "kamerton.text.corpus"
STEPS: dict[str, Known] = {
    "extract": Known(Extract, f"{_HERE}.markup:ExtractStep", "the main text of pages"),
    "repair": Known(Repair, f"{_HERE}.cleaning:RepairStep", "mojibake is undone"),
    "normalise": Known(Normalise, f"{_HERE}.cleaning:NormaliseStep", "Unicode form, spaces, control characters"),
    "length": Known(Length, f"{_HERE}.cleaning:LengthStep", "documents outside of a length"),
    "gopher-quality": Known(GopherQuality, f"{_HERE}.quality:GopherQualityStep", "rules of Gopher"),
    "gopher-repetition": Known(GopherRepetition, f"{_HERE}.quality:GopherRepetitionStep", "repetition in a document"),
    "c4-quality": Known(C4Quality, f"{_HERE}.quality:C4QualityStep", "rules of C4: lines, then the page"),
    "fineweb-quality": Known(FineWebQuality, f"{_HERE}.quality:FineWebQualityStep", "rules of FineWeb"),
    "language": Known(Language, f"{_HERE}.language:LanguageStep", "language identification"),
    "classifier": Known(Classifier, f"{_HERE}.judging:ClassifierStep", "a trained linear classifier"),
    "word-list": Known(WordList, f"{_HERE}.judging:WordListStep", "words and phrases of a file"),
    "mask": Known(Mask, f"{_HERE}.personal:MaskStep", "e-mail, phone, IP and card numbers are masked"),
    "decontaminate": Known(
        Decontaminate, f"{_HERE}.decontamination:DecontaminateStep", "documents with text of test sets"
    ),
    "exact-duplicates": Known(ExactDuplicates, f"{_HERE}.duplicates:Exact", "equal documents", whole=True),
    "near-duplicates": Known(NearDuplicates, f"{_HERE}.near:Near", "nearly equal documents (MinHash)", whole=True),
    "repeated-lines": Known(RepeatedLines, f"{_HERE}.lines:Lines", "lines that many documents have", whole=True),
    "mix": Known(Mix, f"{_HERE}.mixing:Mixing", "shares of domains", whole=True),
}
"""Every step by name."""
