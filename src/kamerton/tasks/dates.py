"""The embedded task `dates`: a date as people write it in a dozen languages → ISO 8601.

Made at run time from CLDR (`babel`), so nothing is downloaded, the answers are right by construction, and any number of
examples can be had. Strings that can mean two dates are left out. The test set has formats that training never shows,
beside formats that it does: each example's group says which, so that a report can tell learning a format from
understanding dates.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from collections import defaultdict
from functools import cache, lru_cache
from itertools import count

import babel

from kamerton.errors import TaskError
from kamerton.tasks.date_formats import FIRST, LAST, LOCALES, Format, formats_of
from kamerton.tasks.example import Example, SplitName, Task, conversation

INSTRUCTION = f"Rewrite the date as YYYY-MM-DD. The year is between {FIRST.year} and {LAST.year}."
SEEN, UNSEEN = "seen format", "unseen format"
_HELD_OUT: tuple[tuple[SplitName, float], ...] = (
    ("test", 0.25),
    ("validation", 0.12),
)  # shares of each locale's formats
_MOST = 12_000  # dates are used once; beyond this, unambiguous ones run short
_TRIES = 2_000


def dates_task(*, train: int = 512, validation: int = 96, test: int = 240, seed: int = 0) -> Task:
    """The task `dates`.

    Half of validation and half of test are in formats that training has; the other halves are in formats of their own.
    No date and no string is there twice. The same arguments give the same task for one version of CLDR, which `source`
    names.

    Args:
        train, validation, test: how many examples.
        seed: of the division of formats and of the sample.

    Raises:
        TaskError: more examples are asked for than there are unambiguous dates.
    """
    if train + validation + test > _MOST:
        message = f"dates has at most {_MOST:,} examples, {train + validation + test:,} are asked for"
        raise TaskError(message, where="task.limit", mend="ask for fewer")
    side = divide(seed)
    rng = random.Random(f"dates-{seed}")
    used: set[datetime.date] = set()
    taken: set[str] = set()
    splits: dict[SplitName, tuple[Example, ...]] = {}
    sizes: tuple[tuple[SplitName, int], ...] = (("test", test), ("validation", validation), ("train", train))
    for name, size in sizes:
        formats: dict[tuple[SplitName, str], list[Format]] = defaultdict(list)
        for form, where in side.items():
            formats[where, form.locale].append(form)
        for options in formats.values():
            rng.shuffle(options)
        turns: dict[tuple[SplitName, str], count[int]] = defaultdict(count)
        examples = []
        for number in range(size):
            source: SplitName = "train" if name == "train" or number % 2 else name
            key = source, LOCALES[(number if name == "train" else number // 2) % len(LOCALES)]
            options = formats[key] or [form for form, where in side.items() if where == source]
            form = options[next(turns[key]) % len(options)]
            examples.append(_example(form, source, side, rng, used, taken, SEEN if source == "train" else UNSEEN))
        rng.shuffle(examples)
        splits[name] = tuple(examples)
    notes = [f"{sum(where == name for where in side.values())} formats are in {name} alone" for name, _ in _HELD_OUT]
    notes.append(f"{len(side)} formats in {len(LOCALES)} locales; strings that can mean two dates are left out")
    return Task(
        name="dates",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        metrics=("exact-match", "date-fields"),
        max_answer_tokens=24,
        notes=tuple(notes),
        source=f"embedded:dates (babel {babel.__version__})",
    )


@lru_cache(maxsize=8)
def divide(seed: int) -> dict[Format, SplitName]:
    """Every format with the split that owns it: train's formats are shown in all splits, the others' only there.

    Numeric formats that people of several countries share (`dd/MM/y`) are one: on one side for all of them.
    """
    owners: dict[tuple[str, str], list[Format]] = defaultdict(list)
    for form in _formats():
        shared = form.kind == "numeric" and not set(form.pattern) & set("Ec")
        plain = form.pattern.replace("dd", "d").replace("MM", "M")
        owners["" if shared else form.locale, plain if shared else form.pattern].append(form)
    by_owner: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for unit in owners:
        by_owner[unit[0]].append(unit)
    side: dict[Format, SplitName] = {}
    for units in by_owner.values():
        units.sort(key=lambda unit: hashlib.sha256(f"{seed}\x1f{unit}".encode()).digest())
        rest = units
        for name, share in _HELD_OUT:
            size = max(1, round(share * len(units)))
            held, rest = rest[:size], rest[size:]
            side.update((form, name) for unit in held for form in owners[unit])
        side.update((form, "train") for unit in rest for form in owners[unit])
    return {form: side[form] for form in _formats()}


def meanings(text: str) -> set[datetime.date]:
    """Every date that a text can mean: in any of the formats, and as three bare numbers in any customary order."""
    found = {date for form in _formats() if (date := form.read(text)) is not None}
    numbers = re.findall(r"\d+", text)
    if len(numbers) == 3 and "年" not in text:
        first, second, third = numbers
        orders = [(third, second, first), (third, first, second), (first, second, third)]
        for year, month, day in orders:
            if len(year) in (2, 4) and len(month) <= 2 and len(day) <= 2:
                full = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= FIRST.year % 100 else 2000)
                try:
                    date = datetime.date(full, int(month), int(day))
                except ValueError:
                    continue
                if FIRST <= date <= LAST:
                    found.add(date)
    return found


@cache
def _formats() -> tuple[Format, ...]:
    return tuple(form for locale in LOCALES for form in formats_of(locale))


def _example(
    form: Format,
    source: SplitName,
    side: dict[Format, SplitName],
    rng: random.Random,
    used: set[datetime.date],
    taken: set[str],
    group: str,
) -> Example:
    """A fresh date in a format; drawn again while its text is ambiguous or also of a format of another side."""
    days = (LAST - FIRST).days + 1
    for _ in range(_TRIES):
        date = FIRST + datetime.timedelta(rng.randrange(days))
        text = form.write(date)
        if date in used or text in taken or meanings(text) != {date}:
            continue
        if any(where != source and other.write(date) == text for other, where in side.items()):
            continue
        used.add(date)
        taken.add(text)
        iso = date.isoformat()
        messages = conversation([("system", INSTRUCTION), ("user", text)])
        return Example(id=f"{form.name}: {iso}", messages=messages, answers=(iso,), group=group)
    raise TaskError(f"no unambiguous date is left for {form.name}", where="task.limit", mend="ask for fewer examples")
