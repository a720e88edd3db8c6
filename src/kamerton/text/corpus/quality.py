"""Published quality rules, as datatrove implements them, on our own words (`words.py`). Each reason names its rule."""

from __future__ import annotations

from collections import Counter
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from kamerton.text.corpus.options import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from kamerton.text.corpus.step import Step, domain_of
from kamerton.text.corpus.words import Words

STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),  # Gopher's own
    "ru": ("и", "в", "не", "на", "что", "с", "я", "он", "как", "это", "а", "по", "но", "к", "у"),
    "de": ("der", "die", "das", "und", "in", "zu", "den", "nicht", "von", "ist", "mit", "sich"),
    "fr": ("le", "la", "les", "de", "et", "que", "à", "un", "une", "est", "dans", "pas"),
    "es": ("el", "la", "los", "de", "y", "que", "en", "un", "una", "por", "con", "no"),
}
"""Words of which any text has some. English: Rae et al. 2021; the others are frequent function words, chosen by us."""


class Rules(Step):
    """A filter of datatrove's; its reasons are ours, with readable names for some."""

    names: dict[str, str] = {}  # noqa: RUF012 (a constant of the class)

    def __init__(self, folder: str, label: str, rules: BaseFilter) -> None:
        super().__init__(folder, label)
        self.rules = rules

    def judge(self, doc: Document) -> str | None:
        if not doc.text.strip():
            return "is empty"
        kept, reason = get_filter_result(self.rules.filter(doc))
        return None if kept else self.names.get(str(reason), str(reason).replace("_", " "))


class GopherQualityStep(Rules):
    """Gopher's quality rules."""

    names = {  # noqa: RUF012
        "gopher_short_doc": "too few words", "gopher_long_doc": "too many words",
        "gopher_below_avg_threshold": "words too short on average",
        "gopher_above_avg_threshold": "words too long on average",
        "gopher_too_many_hashes": "too many hash signs", "gopher_too_many_ellipsis": "too many ellipses",
        "gopher_too_many_bullets": "too many bullet lines",
        "gopher_too_many_end_ellipsis": "too many lines end in an ellipsis",
        "gopher_below_alpha_threshold": "too few words with letters", "gopher_enough_stop_words": "too few stop words",
    }  # fmt: skip

    def __init__(self, folder: str, label: str, options: GopherQuality) -> None:
        given = options.stop_words if options.stop_words is not None else STOP_WORDS.get(options.language)
        rules = GopherQualityFilter(
            min_doc_words=max(options.min_words, 1), max_doc_words=options.max_words,
            min_avg_word_length=options.min_mean_word, max_avg_word_length=options.max_mean_word,
            max_symbol_word_ratio=options.max_symbols, max_bullet_lines_ratio=options.max_bullet_lines,
            max_ellipsis_lines_ratio=options.max_ellipsis_lines,
            max_non_alpha_words_ratio=options.min_alphabetic_words,
            min_stop_words=options.min_stop_words if given else 0, stop_words=list(given or ()),
            language=Words(options.language),
        )  # fmt: skip
        super().__init__(folder, label, rules)


class GopherRepetitionStep(Rules):
    """Gopher's repetition rules."""

    names = {  # noqa: RUF012
        "dup_line_frac": "too many repeated lines", "dup_para_frac": "too many repeated paragraphs",
        "dup_line_char_frac": "too much text in repeated lines",
        "dup_para_char_frac": "too much text in repeated paragraphs",
        **{f"top_{n}_gram": f"one sequence of {n} words is too frequent" for n in range(2, 20)},
        **{f"duplicated_{n}_n_grams": f"too much text in repeated sequences of {n} words" for n in range(2, 20)},
    }  # fmt: skip

    def __init__(self, folder: str, label: str, options: GopherRepetition) -> None:
        rules = GopherRepetitionFilter(
            dup_line_frac=options.lines, dup_para_frac=options.paragraphs, dup_line_char_frac=options.line_characters,
            dup_para_char_frac=options.paragraph_characters, top_n_grams=tuple(sorted(options.top.items())),
            dup_n_grams=tuple(sorted(options.duplicated.items())), language=Words(options.language),
        )  # fmt: skip
        super().__init__(folder, label, rules)


class _CountedC4(C4QualityFilter):
    """Remembers which lines it cut."""

    cut: Counter[str]

    def stat_update(self, *labels: str, **_: Any) -> None:
        for label in labels:
            if label.startswith("line-filter-"):
                self.cut[label.removeprefix("line-filter-").replace("_", " ").replace("punc", "end mark")] += 1


class C4QualityStep(Rules):
    """C4's rules; lines that were cut are counted by rule."""

    def __init__(self, folder: str, label: str, options: C4Quality) -> None:
        rules = _CountedC4(
            filter_no_terminal_punct=options.end_marks, min_words_per_line=options.min_words_in_line,
            min_num_sentences=options.min_sentences or -1, filter_lorem_ipsum=options.lorem_ipsum,
            filter_javascript=options.javascript, filter_curly_bracket=options.curly_bracket,
            filter_policy=options.policy, remove_citations=options.citations,
            language=Words(options.language),
        )  # fmt: skip
        super().__init__(folder, label, rules)
        self.counted = rules

    def judge(self, doc: Document) -> str | None:
        self.counted.cut = Counter()
        reason = super().judge(doc)
        if reason is None:
            for rule, count in self.counted.cut.items():
                self.tally.note(domain_of(doc), f"lines cut: {rule}", count)
        return reason


class FineWebQualityStep(Rules):
    """FineWeb's rules."""

    names = {  # noqa: RUF012
        "line_punct_ratio": "too few lines end in a mark", "short_line_ratio": "too many short lines",
        "char_dup_ratio": "too much text in repeated lines", "list_ratio": "too many line ends for its words",
    }  # fmt: skip

    def __init__(self, folder: str, label: str, options: FineWebQuality) -> None:
        rules = FineWebQualityFilter(
            line_punct_thr=options.min_lines_with_end_mark, short_line_thr=options.max_short_lines,
            short_line_length=options.short_line, char_duplicates_ratio=options.max_repeated_line_characters,
            new_line_ratio=options.max_new_lines_to_words, language=Words(options.language),
        )  # fmt: skip
        super().__init__(folder, label, rules)
