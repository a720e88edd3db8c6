"""How people write dates in a dozen languages: CLDR's patterns from `babel`, and customary ones that CLDR lacks.

A pattern is LDML's (`EEEE, d. MMMM y`, text in single quotes, `''` an apostrophe) with two letters of our own: `o` is
the day as an ordinal, `R` the month as a Roman numeral. A format can be written (a date → text) and read (text → the
date it means), so that ambiguous strings are found rather than hoped against. Only the Gregorian calendar and ASCII
digits.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

from babel import Locale

FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)  # a century: a two-digit year means one year
LOCALES = ("en_US", "en_GB", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "tr", "ja")

# written by people and not by CLDR; ordinals and prepositions as grammars of the languages have them
CUSTOMARY: dict[str, tuple[str, ...]] = {
    "en_US": ("MMMM o, y", "EEEE, MMMM o, y", "MMM o, y", "MMMM d y", "MMM d ''yy", "d-MMM-y"),
    "en_GB": ("o MMMM y", "'the' o 'of' MMMM y", "o 'of' MMMM, y", "EEEE o MMMM y", "d MMM ''yy", "E d MMM y"),
    "de": ("'den' d. MMMM y", "EEEE, 'den' d. MMMM y", "'am' d. MMMM y"),
    "fr": ("'le' o MMMM y", "'le' EEEE o MMMM y", "E d/M/y"),
    "es": ("'el' d 'de' MMMM 'de' y", "d 'de' MMMM 'del' y", "EEEE d 'de' MMMM 'de' y"),
    "it": ("o MMMM y", "d-MMM-y", "EEEE, d MMMM y"),
    "pt": ("'em' o 'de' MMMM 'de' y", "'dia' d 'de' MMMM 'de' y"),
    "nl": ("d MMM ''yy", "'de' o MMMM y", "'op' EEEE d MMMM y"),
    "sv": ("'den' d MMMM y", "EEEE'en den' d MMMM y", "'den' o MMMM y", "d/M y"),
    "pl": ("d MMMM y 'r'.", "EEEE, d MMMM y 'r'.", "d R y", "d.R.y"),
    "ru": ("d MMMM y 'года'", "o MMMM y 'года'", "EEEE, d MMMM y", "d MMM y"),
    "tr": ("d MMMM y, EEEE", "dd/MM/y"),
    "ja": ("y年MM月dd日", "y/MM/dd(E)", "y.M.d"),
}
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_TOKEN = re.compile(r"'((?:[^']|'')*)'|(E+|c+|M+|L+|d+|y+|o|R)|([^A-Za-z']+|[A-Za-z])")


def _english(day: int) -> str:
    return f"{day}{'th' if 11 <= day <= 13 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


_ORDINALS: dict[str, Callable[[int], str]] = {
    "en": _english,
    "fr": lambda day: "1er" if day == 1 else str(day),  # only the first has one in dates
    "it": lambda day: f"l'{day}" if day in (8, 11) else "il 1º" if day == 1 else f"il {day}",  # with its article
    "pt": lambda day: "1º" if day == 1 else str(day),
    "nl": lambda day: f"{day}e",
    "sv": lambda day: f"{day}:{'a' if day % 10 in (1, 2) and day not in (11, 12) else 'e'}",
    "ru": lambda day: f"{day}-го",
}


@cache
def _names(locale: str, kind: str, context: str, width: str) -> tuple[str, ...]:
    """Month names from January, or weekday names from Monday, with plain spaces."""
    data = getattr(Locale.parse(locale), kind)[context][width]
    first = 1 if kind == "months" else 0
    return tuple(_plain(data[first + index]) for index in range(len(data)))


def _plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u00a0", " ")


@dataclass(frozen=True)
class Format:
    """One way to write dates in one locale.

    Attributes:
        locale: CLDR's name of the language or region.
        pattern: LDML with `o` and `R`.
    """

    locale: str
    pattern: str
    _parts: list[tuple[str, str]] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        pattern = _plain(self.pattern).replace("''", "\x00")  # an apostrophe, outside of quoted text
        for match in _TOKEN.finditer(pattern):
            quoted, letters, other = match.groups()
            literal = (quoted if quoted is not None else other or "").replace("\x00", "'")
            self._parts.append(("", literal) if letters is None else (letters, ""))

    @property
    def name(self) -> str:
        """`locale: pattern`."""
        return f"{self.locale}: {_plain(self.pattern)}"

    @property
    def kind(self) -> str:
        """`named` (the month is a name or Roman), `marked` (each number says what it is), or `numeric`."""
        tokens = [letters for letters, _ in self._parts]
        if any(letters == "R" or (letters[:1] in "ML" and len(letters) > 2) for letters in tokens if letters):
            return "named"
        return "marked" if "年" in self.pattern else "numeric"

    def write(self, date: datetime.date) -> str:
        """The date as text."""
        return "".join(literal or self._value(letters, date) for letters, literal in self._parts)

    def read(self, text: str) -> datetime.date | None:
        """The date between `FIRST` and `LAST` that the text means in this format, None if it is not of this format.

        Lenient: case and leading zeros are free, and the weekday may be any.
        """
        match = self._regex.fullmatch(text)
        if match is None:
            return None
        found = match.groupdict()
        months = [self._value(self._month, datetime.date(2000, month, 1)).casefold() for month in range(1, 13)]
        month = int(found["month"]) if found["month"].isdigit() else months.index(found["month"].casefold()) + 1
        year = int(found["year"])
        if year < 100:
            year += 1900 if year >= FIRST.year % 100 else 2000
        day = "".join(character for character in found["day"] if character.isdigit())
        try:
            date = datetime.date(year, month, int(day))
        except ValueError:
            return None
        return date if FIRST <= date <= LAST else None

    @property
    def _month(self) -> str:
        return next(letters for letters, _ in self._parts if letters and letters[0] in "MLR")

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = []
        for letters, literal in self._parts:
            options: set[str] = set()
            if letters and letters[0] in "Ec":
                options = {self._value(letters, datetime.date(2000, 1, day)) for day in range(1, 8)}
            elif letters == "R" or (letters[:1] in ("M", "L") and len(letters) > 2):
                options = {self._value(letters, datetime.date(2000, month, 1)) for month in range(1, 13)}
            elif letters == "o":
                options = {self._value(letters, datetime.date(2000, 1, day)) for day in range(1, 32)}
            choice = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
            if not letters:
                parts.append(re.escape(literal))
            elif letters[0] in "Ec":
                parts.append(f"(?:{choice})")
            elif letters[0] in "MLR":
                parts.append(f"(?P<month>{choice})" if options else r"(?P<month>\d{1,2})")
            elif letters[0] in "do":
                parts.append(f"(?P<day>{choice})" if options else r"(?P<day>\d{1,2})")
            else:
                parts.append(r"(?P<year>\d{2})" if letters == "yy" else r"(?P<year>\d{4})")
        return re.compile("".join(parts), re.IGNORECASE)

    def _value(self, letters: str, date: datetime.date) -> str:
        symbol, width = letters[0], "wide" if len(letters) >= 4 else "abbreviated"
        if symbol in "Ec":
            return _names(self.locale, "days", "format" if symbol == "E" else "stand-alone", width)[date.weekday()]
        if symbol in "ML" and len(letters) >= 3:
            return _names(self.locale, "months", "format" if symbol == "M" else "stand-alone", width)[date.month - 1]
        if symbol in "ML":
            return f"{date.month:0{len(letters)}d}"
        if symbol == "R":
            return _ROMAN[date.month - 1]
        if symbol == "o":
            return _ORDINALS[self.locale.split("_")[0]](date.day)
        if symbol == "d":
            return f"{date.day:0{len(letters)}d}"
        return f"{date.year % 100:02d}" if letters == "yy" else str(date.year)


def formats_of(locale: str) -> list[Format]:
    """Every format of a locale: CLDR's four date formats, its skeletons with year, month and day, and customary ones.

    ISO 8601 itself is left out: it would be copied.
    """
    data = Locale.parse(locale)
    patterns = [data.date_formats[width].pattern for width in ("full", "long", "medium", "short")]
    for skeleton, pattern in sorted(data.datetime_skeletons.items()):
        letters = set(skeleton)
        if {"y", "M", "d"} <= letters <= set("yMdEc"):  # neither eras nor times
            patterns.append(pattern.pattern if hasattr(pattern, "pattern") else str(pattern))
    patterns += CUSTOMARY.get(locale, ())
    return [Format(locale, pattern) for pattern in dict.fromkeys(map(_plain, patterns)) if pattern != "y-MM-dd"]
