"""How numbers are written for people: scores in the units of their metric, costs with a prefix, durations, p-values.

Shared by the verdict's sentence, the tables and the report, so that one number looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Units of a metric: per cent for scores between 0 and 1, the plain number for all others.

    Attributes:
        name: the metric's name for people.
        low, high: its range.
        higher_is_better: which direction is better.
    """

    name: str
    low: float
    high: float
    higher_is_better: bool = True

    @property
    def percent(self) -> bool:
        return (self.low, self.high) == (0.0, 1.0)

    @property
    def factor(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        return "%" if self.percent else ""

    @property
    def difference_unit(self) -> str:
        return "points" if self.percent else ""

    @property
    def digits(self) -> int:
        return 1 if self.percent or self.high - self.low > 10 else 3

    def number(self, value: float | None) -> str:
        """A score without its unit: 83.1."""
        if value is None:
            return "–"
        return minus(f"{value * self.factor:.{self.digits}f}")

    def score(self, value: float | None) -> str:
        """A score with its unit: 83.1%."""
        return self.number(value) + (self.unit if value is not None else "")

    def signed(self, value: float) -> str:
        """A difference without its unit: +4.2 or −0.9."""
        text = f"{value * self.factor:+.{self.digits}f}"
        return minus(text) if float(text) else minus(f"{0:.{self.digits}f}")

    def points(self, value: float) -> str:
        """A difference with its unit: +4.2 points."""
        return f"{self.signed(value)} {self.difference_unit}".strip()


def minus(text: str) -> str:
    return text.replace("-", MINUS)


def quantity(value: float | None, unit: str = "") -> str:
    """Three digits with an SI prefix: 1.23 M, 460 k, 0.98; "–" where not measured."""
    if value is None:
        return "–"
    space = "" if not unit else "\N{NO-BREAK SPACE}"
    size = abs(value)
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if size >= 0.9995 * 10**power:
            return minus(f"{_three(value / 10**power)}\N{NO-BREAK SPACE}{prefix}{unit}")
    return minus(f"{_three(value)}{space}{unit}")


def _three(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 0.9995:
        return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:.0f}"
    return f"{value:.3g}"


def tick(value: float) -> str:
    """As `quantity`, without zeros at the end: for axes."""
    number, space, prefix = quantity(value).partition("\N{NO-BREAK SPACE}")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + prefix


def plain(value: float | None) -> str:
    """A count: whole numbers below 10,000 as they are, others as `quantity`."""
    if value is None:
        return "–"
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 10_000 else quantity(value)


def duration(seconds: float | None) -> str:
    """41 ms, 8.20 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    space = "\N{NO-BREAK SPACE}"
    if seconds < 0.0005:
        return f"0{space}s" if seconds == 0 else f"<{space}1{space}ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g}{space}ms"
    if seconds < 59.5:
        return f"{seconds:.3g}{space}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{space}min" + (f" {rest}{space}s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{space}h" + (f" {minutes}{space}min" if minutes else "")


def fixed(value: float | None, *, sign: bool = False) -> str:
    """Four decimals, so that a column of them lines up: 0.0213, −0.0004; "–" where not measured."""
    if value is None:
        return "–"
    rounded = round(value, 4) + 0.0  # no minus before a zero
    return minus(f"{rounded:+.4f}" if sign and rounded else f"{rounded:.4f}")


def p_value(p: float | None) -> str:
    """0.031, < 0.001."""
    if p is None:
        return "–"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def listing(items: Sequence[str], joiner: str = "and") -> str:
    """a; a and b; a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {joiner} {items[-1]}"
