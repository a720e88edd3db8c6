"""Metrics that read a value out of the answer: numbers (with tolerance, or correlated), JSON, dates."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kamerton.errors import TaskError
from kamerton.evaluation.metrics import MeanMetric, Metric, MicroF1, normalise
from kamerton.tasks.example import Example

_DIGITS = r"(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|\.\d+"
_NUMBER = re.compile(rf"(?<![\w.])[-+\u2212]?(?:{_DIGITS})(?:/[1-9]\d*)?|(?:{_DIGITS})")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_TOLERANCE = 1e-6


def last_number(text: str) -> float | None:
    """The last number of a text, None where there is none. Reads 1,234.5, −3, 1e-4 and 3/4; ignores units.

    A comma separates thousands; a decimal comma is not read as one.
    """
    found = numbers_in(text)
    if not found:
        return None
    whole, _, divisor = re.sub(r"[,\u00a0\u202f]", "", found[-1]).replace("\u2212", "-").partition("/")
    return float(whole) / (float(divisor) if divisor else 1.0)


def numbers_in(text: str) -> list[str]:
    """The numbers of a text as they are written there."""
    return _NUMBER.findall(text)


def _numeric(name: str, parameter: str, _examples: Sequence[Example] | None) -> Metric:
    """1 where the answer's last number a is near an accepted one's b: |a - b| ≤ tolerance·max(1, |b|)."""
    try:
        tolerance = float(parameter) if parameter else _TOLERANCE
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < math.inf:
        message = f"{parameter!r} is not a tolerance"
        raise TaskError(message, where="metrics", mend="write numeric:0.01")

    def score(answer: str, example: Example) -> float:
        given = last_number(answer)
        wanted = [number for reference in example.answers if (number := last_number(reference)) is not None]
        if not wanted:
            message = f"the answer {example.answers[0]!r} has no number"
            raise TaskError(message, where=example.id, mend="use another metric, or mend the answer")
        return float(given is not None and any(abs(given - b) <= tolerance * max(1.0, abs(b)) for b in wanted))

    return MeanMetric(name, score)


def reference_numbers(examples: Sequence[Example]) -> np.ndarray:
    """(N,) the last number of each example's first accepted answer.

    Raises:
        TaskError: an answer has none.
    """
    numbers = []
    for example in examples:
        number = last_number(example.answers[0])
        if number is None:
            message = f"the answer {example.answers[0]!r} has no number"
            raise TaskError(message, where=example.id, mend="use another metric, or mend the answer")
        numbers.append(number)
    return np.array(numbers, dtype=np.float64)


def answered_numbers(answers: Sequence[str], otherwise: float) -> np.ndarray:
    """(N,) the last number of each answer; `otherwise` for one that has none, or none that is finite."""
    given = [last_number(answer) for answer in answers]
    return np.array([otherwise if n is None or not math.isfinite(n) else n for n in given], dtype=np.float64)


class Pearson:
    """Pearson correlation of the answer's last number with the reference's. S = 5: Σx, Σy, Σx², Σy², Σxy.

    An answer without a number counts as the mean of the references, which says nothing; so does one that is not finite.
    Both sides are centred there, which changes no correlation and keeps the sums small. 0 where it is not defined.
    """

    higher_is_better = True
    range = (-1.0, 1.0)

    def __init__(self, name: str, examples: Sequence[Example] | None) -> None:
        self.name = name
        self._centre = float(np.mean(reference_numbers(examples))) if examples else None

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 5)."""
        y = reference_numbers(examples)
        centre = self._centre if self._centre is not None else (float(y.mean()) if len(y) else 0.0)
        x, y = answered_numbers(answers, centre) - centre, y - centre
        return np.stack([x, y, x * x, y * y, x * y], axis=1)

    def aggregate(self, sums: np.ndarray, count: np.ndarray | float) -> np.ndarray:
        """Covariance over the product of the standard deviations."""
        x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=np.float64) / np.asarray(count)[..., None], -1, 0)
        spread_x, spread_y = xx - x * x, yy - y * y
        safe = (spread_x > 1e-12 * np.maximum(xx, 1e-300)) & (spread_y > 1e-12 * np.maximum(yy, 1e-300))
        scale = np.sqrt(np.where(safe, spread_x, 1.0)) * np.sqrt(np.where(safe, spread_y, 1.0))
        return np.where(safe, np.clip((xy - x * y) / scale, -1, 1), 0.0)


def read_json(text: str) -> tuple[bool, Any]:
    """(whether the text is JSON, its value). Only white space may surround it; NaN and Infinity are not JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return True, json.loads(text.strip(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False, None


def json_fields(value: Any) -> Counter[tuple[Any, ...]]:
    """The fields of a JSON value: each leaf with its path; list items share a path, so that their order is free.

    Text is compared after `normalise`, numbers by value; true, 1 and "1" differ.
    """
    fields: Counter[tuple[Any, ...]] = Counter()

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, dict) and node:
            for key, item in node.items():
                walk(item, (*path, f".{key}"))
        elif isinstance(node, list) and node:
            for item in node:
                walk(item, (*path, "[]"))
        elif isinstance(node, str):
            fields[*path, "text", normalise(node)] += 1
        elif isinstance(node, (int, float)) and not isinstance(node, bool):
            fields[*path, "number", node] += 1
        else:
            fields[*path, "other", json.dumps(node)] += 1

    walk(value, ())
    return fields


class JsonF1(MicroF1):
    """F1 over the fields of all answers together (micro). S = 3: matching fields, answered fields, expected fields.

    An answer that is not JSON has no fields. Of several accepted answers the one with the best F1 counts.
    """

    name = "json-f1"

    def statistics(self, answers: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        """(N, 3)."""
        rows = np.zeros((len(answers), 3))
        for row, answer, example in zip(rows, answers, examples, strict=True):
            valid, value = read_json(answer)
            given = json_fields(value) if valid else Counter()
            options = []
            for reference in _json_references(example):
                wanted = json_fields(reference)
                same = (given & wanted).total()
                options.append((2 * same / (given.total() + wanted.total()), same, given.total(), wanted.total()))
            row[:] = max(options, key=lambda option: option[0])[1:]
        return rows


def json_exact(answer: str, example: Example) -> float:
    """1 where the answer is JSON with the same value as an accepted answer: lists in order, text after `normalise`."""
    valid, value = read_json(answer)
    return float(valid and any(_canonical(value) == _canonical(r) for r in _json_references(example)))


def _canonical(value: Any) -> Any:
    """A form of a JSON value that compares as JSON does: true is not 1, 1 is 1.0, the order of keys is free."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return normalise(value) if isinstance(value, str) else (type(value) is bool, value)


def _json_references(example: Example) -> list[Any]:
    values = []
    for reference in example.answers:
        valid, value = read_json(reference)
        if not valid:
            mend = "use another metric, or mend the answer"
            raise TaskError(f"the accepted answer {reference[:60]!r} is not JSON", where=example.id, mend=mend)
        values.append(value)
    return values


def date_fields(answer: str, example: Example) -> float:
    """The share of year, month and day that is right, of the first ISO 8601 date in the answer; 0 without one."""
    given = _DATE.search(answer)
    best = 0.0
    for reference in example.answers:
        wanted = _DATE.fullmatch(reference.strip())
        if wanted is None:
            message = f"the accepted answer {reference!r} is not a date"
            raise TaskError(message, where=example.id, mend="write it as YYYY-MM-DD")
        if given is not None:
            best = max(best, sum(a == b for a, b in zip(given.groups(), wanted.groups(), strict=True)) / 3)
    return best


METRICS: dict[str, Callable[[str, str, Sequence[Example] | None], Metric]] = {
    "numeric": _numeric,
    "pearson": lambda _name, _parameter, examples: Pearson("pearson", examples),
    "json-f1": lambda _name, _parameter, _examples: JsonF1(),
    "json-exact": lambda _name, _parameter, _examples: MeanMetric("json-exact", json_exact),
    "date-fields": lambda _name, _parameter, _examples: MeanMetric("date-fields", date_fields),
}
