"""What the untouched base says to general text and prompts: what forgetting is measured against."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kamerton.base import Base
from kamerton.comparison.store import Store
from kamerton.errors import TaskError
from kamerton.evaluation.forgetting import Reference, embedded_text, read_text, reference
from kamerton.files import write_json
from kamerton.inference import Engine
from kamerton.recipe import Recipe, TextSpec
from kamerton.tasks.example import fingerprint


def base_reference(
    recipe: Recipe, base: Base, store: Store, common: dict[str, Any], say: Callable[[str], None]
) -> Reference | None:
    """What the base says to general text and prompts; measured once and kept."""
    spec = recipe.forgetting
    if spec is None:
        return None
    path = store.folder / "reference.json"
    measured_on = {k: common[k] for k in ("version", "base", "renderer", "forgetting")}
    own_text = common.get("files", {}).get("text")
    key = fingerprint({**measured_on, "text": own_text} if own_text else measured_on)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["key"] == key and saved["sum"] == fingerprint(saved["reference"]):
            return Reference(**saved["reference"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or damaged: it is measured again
    say("measuring the base on general text and prompts")
    text = general_text(recipe, spec.text, spec.bytes)
    engine = Engine(base.model, base.renderer, max_batch_tokens=recipe.evaluation.max_batch_tokens)
    measured = reference(engine, text, spec.prompts)
    write_json(path, {"key": key, "reference": measured.to_dict(), "sum": fingerprint(measured.to_dict())})
    return measured


def general_text(recipe: Recipe, spec: TextSpec, size: int) -> str:
    """The text on which forgetting is measured."""
    if spec.hub is not None:
        return _hub_text(recipe, spec, size)
    if spec.path == "embedded":
        return embedded_text(size)
    try:
        return read_text(recipe.resolve(spec.path), size)
    except TaskError as error:
        raise recipe.error(("forgetting", "text"), f"{error.where}: {error.message}", mend=error.mend) from error


def _hub_text(recipe: Recipe, spec: TextSpec, size: int) -> str:
    from datasets import load_dataset

    try:
        rows = load_dataset(spec.hub, spec.config, split=spec.split, streaming=True)
        parts, length = [], 0
        for row in rows:
            parts.append(str(row[spec.column]))
            length += len(parts[-1].encode()) + 2
            if length >= size:
                break
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise recipe.error(
            ("forgetting", "text", "hub"),
            f"cannot be read ({type(error).__name__}: {first[:150]})",
            mend="check the id, the column and the network, or use text: embedded",
        ) from error
    return "\n\n".join(parts).encode()[:size].decode(errors="ignore")
