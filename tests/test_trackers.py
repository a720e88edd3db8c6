"""Trackers: what `--tracker tensorboard` writes is the learning curve, and its files stay with the result."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamerton as kt
import tiny

pytest_plugins = ("tiny",)
pytestmark = pytest.mark.usefixtures("one_thread")


def scalars(file: Path) -> Iterator[tuple[str, int, float]]:
    """(name, step, value) of an event file: records of length (8 bytes), checksum (4), event, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield value.tag, event.step, value.simple_value


def test_tensorboard_gets_every_step(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="reads what tensorboard writes")
    options: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 8, "validations": 2}
    recipe = tiny.write_recipe(tmp_path / "r", small_folder, "- lora", seeds="[0]")
    adapted = kt.tune(recipe, output=tmp_path / "out", options=options, trackers=("tensorboard",))
    (file,) = [f for f in (tmp_path / "out").rglob("events.out.tfevents.*") if any(True for _ in scalars(f))]
    found = list(scalars(file))
    curve = adapted.record.curve
    assert len(curve) == 6
    for name in ("loss", "learning_rate", "validation_loss"):
        expected = {row["step"]: row[name] for row in curve if name in row}
        assert expected
        assert {step: value for tag, step, value in found if tag == name} == pytest.approx(expected, rel=1e-6)
    assert kt.load(tmp_path / "out").method == "lora"
