"""Metrics that compare an answer's text with the accepted ones: SQuAD's exact match and token F1, BLEU, ROUGE."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation.metrics import MeanMetric, Metric, best_of
from kamerton.recipe_errors import closest
from kamerton.tasks.example import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# a word, or one character of the scripts that are written without spaces
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
_ORDERS = 4


def squad_tokens(text: str) -> list[str]:
    """Tokens as SQuAD's evaluation has them (Rajpurkar et al. 2016): lower case, no ASCII punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def squad_em(answer: str, reference: str) -> float:
    """1 where both have the same SQuAD tokens."""
    return float(squad_tokens(answer) == squad_tokens(reference))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the bags of SQuAD tokens; where one side has no token, 1 if both have none, else 0."""
    given, wanted = squad_tokens(answer), squad_tokens(reference)
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))


class Bleu:
    """Corpus BLEU on sacrebleu's scale of 0 to 100 (Papineni et al. 2002; Post 2018). S = 2 + 2·4.

    Statistics are sacrebleu's own counts of each sentence: its length, the closest reference length, matching n-grams
    and all n-grams for n = 1…4. The aggregate is sacrebleu's corpus score with its default smoothing (`exp`).
    """

    higher_is_better = True
    range = (0.0, 100.0)

    def __init__(self, name: str, tokenizer: str) -> None:
        from sacrebleu.metrics import BLEU

        self.name = name
        known = sorted(BLEU.TOKENIZERS)
        if tokenizer and tokenizer not in known:
            raise TaskError(f"unknown tokenizer {tokenizer!r} of bleu", where="metrics", mend=closest(tokenizer, known))
        # effective order concerns the sentence's own score, which is not used; it silences a warning
        self._bleu = BLEU(tokenize=tokenizer or None, effective_order=True)

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 10): length, reference length, 4 counts of matches, 4 counts of n-grams."""
        rows = np.zeros((len(answers), 2 + 2 * _ORDERS))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            score = self._bleu.sentence_score(answer, list(example.answers))
            row[:] = [score.sys_len, score.ref_len, *score.counts, *score.totals]
        return rows

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:  # noqa: ARG002 (contract)
        """Brevity penalty times the geometric mean of the smoothed precisions, times 100."""
        sums = np.asarray(sums, dtype=np.float64)
        length, wanted = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
        # the n-th order without a match counts as 1/2, the next one as 1/4, … of one match
        smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum((matches == 0) & (totals > 0), axis=-1))
        defined = np.asarray((totals > 0).all(-1) & (matches > 0).any(-1))
        precision = np.where(defined[..., None], smoothed / np.maximum(totals, 1), 1.0)
        ratio = np.divide(wanted, length, out=np.ones_like(length), where=length > 0)
        penalty = np.exp(np.minimum(0.0, 1 - ratio))
        return np.where(defined, 100 * penalty * np.exp(np.log(precision).mean(-1)), 0.0)


class _Words:
    """rouge-score's tokenizer for every script: the same on ASCII; elsewhere letters are kept, not dropped."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _rouge(name: str) -> Metric:
    """ROUGE F1 (Lin 2004) by rouge-score without stemming, the best over the accepted answers."""
    from rouge_score.rouge_scorer import RougeScorer

    key = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}[name]
    scorer = RougeScorer([key], tokenizer=_Words())
    return MeanMetric(name, best_of(lambda answer, reference: float(scorer.score(reference, answer)[key].fmeasure)))


def _no_parameter(make: Callable[[str], Metric]) -> Callable[[str, str, Any], Metric]:
    def build(name: str, parameter: str, _examples: Any) -> Metric:
        base = name.partition(":")[0]
        if parameter:
            raise TaskError(f"{base} takes no parameter", where="metrics", mend=f"write {base}")
        return make(base)

    return build


def _of_answers(judge: Callable[[str, str], float]) -> Callable[[str, str, Any], Metric]:
    """A metric of SQuAD; `NAME:TEXT`: as version 2.0 has it, TEXT is no answer (Rajpurkar et al. 2018)."""

    def build(name: str, parameter: str, _examples: Any) -> Metric:
        none = squad_tokens(parameter)
        if parameter and not none:
            raise TaskError(f"{parameter!r} has no words", where="metrics", mend="write what stands for no answer")

        def answer_in(text: str) -> str:
            return "" if none and squad_tokens(text) == none else text

        return MeanMetric(name, best_of(lambda given, wanted: judge(answer_in(given), answer_in(wanted))))

    return build


METRICS: dict[str, Callable[[str, str, Sequence[Example] | None], Metric]] = {
    "squad-em": _of_answers(squad_em),
    "token-f1": _of_answers(token_f1),
    "bleu": lambda name, parameter, _examples: Bleu(name, parameter),
    "rouge-1": _no_parameter(_rouge),
    "rouge-2": _no_parameter(_rouge),
    "rouge-l": _no_parameter(_rouge),
}
