"""A short run of the fuzzing of every reader, the same in each run: `python benchmarks/fuzz.py` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing.readers import READERS, scratch
from fuzzing.running import attempt, run

COUNTED = {"checkpoint", "corpus-files"}
"""Readers that pass over what is broken and count it: they never end in an error."""


SLOW = {"gguf", "saved-method"}
"""Their first cases take seconds to make."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in READERS]
)
def test_a_reader_gives_a_value_or_one_line(name: str) -> None:
    with scratch() as place, READERS[name].open(place) as (seeds, read):
        for case in seeds[:4]:
            assert attempt(read, case, 600) == (None, None), "a first case is read without an error"  # imports too
        outcome = run(read, seeds, READERS[name].inputs, seed=7, seconds=60)
    assert not outcome.failures, "\n".join(trace for _, _, trace in outcome.failures.values())
    assert outcome.inputs == READERS[name].inputs
    assert bool(outcome.errors) != (name in COUNTED), "changes as these break something"


def test_a_failing_reader_is_found(tmp_path: Path) -> None:
    """A planted bug: a reader that divides by the number of lines in its file."""

    def read(case: dict[str, bytes]) -> float:
        return 1 / len([line for line in case["a.txt"].split(b"\n") if line])

    outcome = run(read, [{"a.txt": b"one\ntwo"}], 400, current=tmp_path / "current.json")
    assert any("ZeroDivisionError" in words for words in outcome.failures)
