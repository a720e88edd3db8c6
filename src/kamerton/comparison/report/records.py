"""What the files of a comparison may hold: checked where they are read, so that a report never meets anything else.

Only what pages, tables and the verdict read is checked; further fields stay as they are. A number that has to be drawn
is finite; a loss or a score may be infinite or none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kamerton.errors import KamertonError

Count = Annotated[float, Field(ge=-1e300, le=1e300, allow_inf_nan=False)] | None
Counts = dict[str, Count] | None


class _Fields(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Finding(_Fields):
    title: str
    note: str
    columns: list[str]
    rows: list[list[str | bool | int | float | None]]
    curve: bool
    levels: list[Annotated[tuple[str, float], Field(strict=False)]] = []  # JSON has lists only


class CellRecord(_Fields):
    """`cell.json`."""

    label: str
    seed: int
    status: str
    method: str | None = None
    options: dict[str, Any] = {}
    chosen: dict[str, Any] | None = None
    search: list[dict[str, Any]] | None = None
    metrics: dict[str, float | None] = {}
    seconds: Counts = None
    tokens: Counts = None
    flops: Counts = None
    tokens_per_answer: Counts = None
    forgetting: dict[str, Any] | None = None
    peak_memory_bytes: Count = None
    trainable_parameters: Count = None
    disk_bytes: Count = None
    latency_seconds: Count = None
    marks: list[str] = []
    notes: list[str] = []
    findings: list[_Finding] = []
    same_as_seed: int | None = None
    error: str = ""


class _Method(_Fields):
    label: str
    method: str | None = None
    summary: str | None = None


class _Task(_Fields):
    name: str | None = None
    metrics: list[str] = []
    sizes: dict[str, int] | None = None
    notes: list[str] = []


class Settings(_Fields):
    """`settings.json`."""

    name: str | None = None
    methods: list[_Method] = []
    seeds: list[int] = []
    task: _Task | None = None
    base: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    command: str | None = None
    kamerton: str | None = None


class CurveLine(_Fields):
    """A line of `curve.jsonl`."""

    step: Count = None
    tokens: Count = None
    seconds: Count = None
    loss: float | None = None
    validation_loss: float | None = None


class _Stop(_Fields):
    label: str
    seed: int | None = None
    share: Count = None


class RaceRecord(_Fields):
    """`race.json`."""

    stopped: list[_Stop] = []


class AnswerLine(_Fields):
    """A line of `answers.jsonl`."""

    statistics: dict[str, list[float]] = {}
    details: dict[str, Any] | None = None


def check_record(kind: type[BaseModel], record: dict[str, Any], where: str | Path, mend: str) -> dict[str, Any]:
    """The record itself, once it is known to be one.

    Raises:
        KamertonError: a field is not what it has to be.
    """
    try:
        kind.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        said = str(first["msg"])
        message = f"has no {field!r}" if first["type"] == "missing" else f"{field}: {said[:1].lower()}{said[1:]}"
        raise KamertonError(message, where=where, mend=mend) from None
    return record


def is_record(kind: type[BaseModel], record: dict[str, Any]) -> bool:
    """Whether it is one: for whoever watches a folder that is being written, and goes on without what is not."""
    try:
        kind.model_validate(record)
    except ValidationError:
        return False
    return True
