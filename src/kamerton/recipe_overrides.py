"""Changes to a recipe from outside its file: single fields, and a local copy of the task's data.

Both work on the plain values, before validation, so that a changed recipe is checked exactly as a written one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kamerton.errors import RecipeError
from kamerton.yaml_source import FieldPath, Source, parse_yaml, text_keys


def set_fields(raw: dict[str, Any], overrides: Mapping[str, Any] | Sequence[str]) -> list[FieldPath]:
    """Set fields in place; returns their paths."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        for text in overrides:
            name, equals, value = text.partition("=")
            if not equals or not name.strip():
                raise RecipeError("is not field=value", where=f"override {text!r}", mend="write budget.tokens=1000")
            pairs.append((name.strip(), parse_yaml(value)[0]))
    changed: list[FieldPath] = []
    for name, value in pairs:
        path: FieldPath = tuple(int(part) if part.isdigit() else part for part in name.split("."))
        node: Any = raw
        for depth, part in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(node, list) and isinstance(part, int) and part < len(node):
                if last:
                    node[part] = value
            elif isinstance(node, dict):
                part = str(part)
                if last:
                    node[part] = text_keys(value)
                elif not isinstance(node.get(part), (dict, list)):
                    short = {"base": "model", "task": "embedded"}.get(part) if depth == 0 else None
                    node[part] = {short: node[part]} if short and isinstance(node.get(part), str) else {}
            else:
                raise RecipeError("no such field", where=f"override {name}", mend="name a field of the recipe")
            if not last:
                node = node[part]
        changed.append(path)
    return changed


def use_local(raw: dict[str, Any], source: Source, data: Path) -> Source:
    """Point the task at a local copy of its data, in place; errors keep the lines of the recipe's `local` part."""
    task = raw.get("task")
    spec = task.get("data") if isinstance(task, dict) else None
    if not isinstance(task, dict) or spec is None:
        where = source.where(("task",))
        raise RecipeError("takes no local data", where=where, mend="leave out --data, or name data in the recipe")
    if not data.exists():
        raise RecipeError("no such file or folder", where=data, mend="give the folder that holds the data")
    moved: dict[FieldPath, FieldPath] = {}
    if data.is_file():
        task["data"] = {"path": str(data.resolve())}
        return source
    local = spec.get("local") if isinstance(spec, dict) else None
    root: FieldPath = ("task", "data", "local")
    if not isinstance(local, dict):
        local, root = spec if isinstance(spec, dict) else {"path": spec}, ("task", "data")
        if "hub" in local:
            mend = "add local: {train: FILE, test: FILE} under data, relative to that folder"
            raise RecipeError("names no local files", where=source.where(root), mend=mend)
    files: dict[str, Any] = {}
    for key, value in local.items():
        if key in ("path", "train", "validation", "test"):
            names = value if isinstance(value, list) else [value]
            files[key] = [str(data.resolve() / str(name)) for name in names]
            moved["task", "data", key] = (*root, key)
        elif root[-1] == "local":
            task[key] = value
            moved["task", key] = (*root, key)
    task["data"] = files
    lines = dict(source.lines)
    for target, origin in moved.items():
        for old, line in source.lines.items():
            if old[: len(origin)] == origin:
                lines[(*target, *old[len(origin) :])] = line
    return Source(source.path, source.folder, lines, source.overrides, source.text)
