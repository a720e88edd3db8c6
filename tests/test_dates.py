"""The embedded task `dates`: right, unambiguous, and split by format."""

from __future__ import annotations

import datetime
import re

import pytest
from babel.dates import format_date
from hypothesis import given, settings
from hypothesis import strategies as st

from kamerton.errors import TaskError
from kamerton.recipe import Recipe
from kamerton.tasks import load_task
from kamerton.tasks.date_formats import FIRST, LAST, LOCALES, Format, formats_of
from kamerton.tasks.dates import SEEN, UNSEEN, dates_task, divide, meanings

DATES = st.dates(FIRST, LAST)
FORMATS = [form for locale in LOCALES for form in formats_of(locale)]


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\xa0", " ")


@settings(deadline=None, max_examples=40)
@given(DATES)
def test_cldr_patterns_are_written_as_babel_writes_them(date: datetime.date) -> None:
    for form in FORMATS:
        if not re.search(r"[oR]", re.sub(r"'[^']*'", "", form.pattern)):
            assert form.write(date) == plain(format_date(date, form.pattern, locale=form.locale)), form


@settings(deadline=None, max_examples=40)
@given(DATES)
def test_every_format_reads_what_it_writes(date: datetime.date) -> None:
    for form in FORMATS:
        assert form.read(form.write(date)) == date, form


@pytest.mark.parametrize(
    ("locale", "pattern", "date", "text"),
    [
        ("en_US", "MMMM o, y", (2021, 3, 1), "March 1st, 2021"),
        ("en_US", "MMMM o, y", (2021, 3, 12), "March 12th, 2021"),
        ("en_US", "MMM d ''yy", (1997, 3, 22), "Mar 22 '97"),
        ("en_GB", "'the' o 'of' MMMM y", (2021, 3, 23), "the 23rd of March 2021"),
        ("fr", "'le' o MMMM y", (2021, 3, 1), "le 1er mars 2021"),
        ("it", "o MMMM y", (2021, 3, 8), "l'8 marzo 2021"),
        ("it", "o MMMM y", (2021, 3, 1), "il 1º marzo 2021"),
        ("sv", "'den' o MMMM y", (2021, 3, 22), "den 22:a mars 2021"),
        ("sv", "'den' o MMMM y", (2021, 3, 11), "den 11:e mars 2021"),
        ("pl", "d R y", (2021, 9, 22), "22 IX 2021"),
        ("ru", "o MMMM y 'года'", (2021, 3, 3), "3-го марта 2021 года"),
    ],
)
def test_forms_of_our_own(locale: str, pattern: str, date: tuple[int, int, int], text: str) -> None:
    assert Format(locale, pattern).write(datetime.date(*date)) == text


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("03/04/2021", {"2021-04-03", "2021-03-04"}),
        ("13/04/2021", {"2021-04-13"}),
        ("05.05.2021", {"2021-05-05"}),
        ("25/12/07", {"2007-12-25", "2025-12-07"}),
        ("25/12/97", {"1997-12-25"}),
        ("2021/04/03", {"2021-04-03"}),
        ("4 mar 2021", {"2021-03-04"}),
        ("yesterday", set()),
        ("31/02/2021", set()),
    ],
)
def test_meanings(text: str, dates: set[str]) -> None:
    assert {date.isoformat() for date in meanings(text)} == dates


@pytest.fixture(scope="module", params=[0, 7])
def task(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return dates_task(seed=request.param)


def test_sizes_and_answers(task) -> None:  # type: ignore[no-untyped-def]
    assert [len(part) for part in (task.train, task.validation, task.test)] == [512, 96, 240]
    seen_texts = set()
    for e in (*task.train, *task.validation, *task.test):
        text = e.messages[1].content
        assert {d.isoformat() for d in meanings(text)} == {e.answers[0]}
        assert e.id.endswith(e.answers[0])
        assert e.answers[0] not in text or "sv" in e.id  # never only to be copied
        seen_texts.add(text)
    assert len(seen_texts) == 848
    assert len({e.answers[0] for e in (*task.train, *task.validation, *task.test)}) == 848


def test_formats_are_split(task) -> None:  # type: ignore[no-untyped-def]
    def formats(examples):  # type: ignore[no-untyped-def]
        return {e.id.rpartition(": ")[0] for e in examples}

    trained = formats(task.train)
    by_name = {form.name: form for form in FORMATS}
    for part in (task.validation, task.test):
        seen = [e for e in part if e.group == SEEN]
        unseen = [e for e in part if e.group == UNSEEN]
        assert len(seen) == len(unseen) == len(part) // 2
        assert not formats(unseen) & trained
        for e in unseen:  # nor does another format of training write the same text
            date = datetime.date.fromisoformat(e.answers[0])
            assert e.messages[1].content not in {by_name[name].write(date) for name in trained}
    assert not formats(e for e in task.test if e.group == UNSEEN) & formats(task.validation)
    for locale in LOCALES:
        assert sum(e.id.startswith(f"{locale}: ") for e in task.test) >= 15


def test_every_format_has_a_side() -> None:
    side = divide(0)
    assert set(side) == set(FORMATS)
    for locale in LOCALES:
        assert {where for form, where in side.items() if form.locale == locale} == {"train", "validation", "test"}


def test_same_seed_same_task_and_other_seed_another() -> None:
    assert (
        dates_task(train=40, validation=13, test=26).fingerprint
        == dates_task(train=40, validation=13, test=26).fingerprint
    )
    assert dates_task(seed=1).fingerprint != dates_task(seed=2).fingerprint


def test_through_a_recipe() -> None:
    fields = {
        "embedded": "dates",
        "limit": {"train": 30, "validation": 6, "test": 9},
        "seed": 3,
        "metrics": ["exact-match"],
    }
    task = load_task(Recipe.from_dict({"task": fields, "methods": ["lora"]}).task)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [30, 6, 9]
    assert task.metrics == ("exact-match",)
    assert "babel" in task.source
    with pytest.raises(TaskError, match="at most"):
        dates_task(train=100_000)
