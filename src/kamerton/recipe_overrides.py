"""Changes to a recipe from outside its file: single fields, tasks of other recipes, and a local copy of the data.

All work on the plain values, before validation, so that a changed recipe is checked exactly as a written one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kamerton.errors import RecipeError
from kamerton.recipe_task import resolve
from kamerton.yaml_source import FieldPath, Source, parse_yaml, read_yaml, text_keys


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


def take_recipes(raw: dict[str, Any], source: Source) -> Source:
    """Put the tasks of other recipes where a mixture names them (`sst2.yaml`, `{recipe: sst2.yaml, …}`), in place.

    What stands beside `recipe` replaces that task's own fields.
    """
    parts: dict[FieldPath, Source] = {}
    for root, item, items in _parts(raw):
        name = item if isinstance(item, str) else item.get("recipe") if isinstance(item, dict) else None
        if not isinstance(name, str) or not (isinstance(item, dict) or name.endswith((".yaml", ".yml"))):
            continue
        path = resolve(name, source)
        if not path.is_file():
            mend = "name a recipe whose task is to be taken"
            raise RecipeError(f"no such recipe {name!r}", where=source.where(root), mend=mend)
        other, origin = read_yaml(path)
        task = other.get("task") if isinstance(other, dict) else None
        if isinstance(task, str):
            task = {"data": {"path": task}} if "/" in task or "." in task else {"embedded": task}
        if not isinstance(task, dict):
            raise RecipeError("has no task to take", where=path, mend="give it task:, or name another recipe")
        own = {key: value for key, value in item.items() if key != "recipe"} if isinstance(item, dict) else {}
        items[root[-1]] = {"name": path.stem, **task, **own}
        parts[root] = origin
    return replace(source, parts=parts)


def _parts(raw: Mapping[str, Any]) -> list[tuple[FieldPath, Any, Any]]:
    """The tasks of a mixture as they are written: (field, task, the list that holds it)."""
    task = raw.get("task")
    groups = [(name, task.get(name)) for name in ("mixture", "held_out")] if isinstance(task, dict) else []
    return [
        (("task", name, i), item, items)
        for name, items in groups if isinstance(items, list) for i, item in enumerate(items)
    ]  # fmt: skip


def use_local(raw: dict[str, Any], source: Source, data: Path) -> Source:
    """Point the task at a local copy of its data, in place; errors keep the lines of the recipe's `local` part.

    Of a mixture every task has its own folder in `data`, by its name.
    """
    task = raw.get("task")
    if not isinstance(task, dict) or not ("mixture" in task or task.get("data") is not None):
        where = source.where(("task",))
        raise RecipeError("takes no local data", where=where, mend="leave out --data, or name data in the recipe")
    if not data.exists():
        raise RecipeError("no such file or folder", where=data, mend="give the folder that holds the data")
    if "mixture" not in task:
        return _point(task, ("task",), source, data)
    for root, item, _ in _parts(raw):
        if not isinstance(item, dict) or item.get("data") is None:
            continue
        if not isinstance(item.get("name"), str):
            mend = "add name: to it; its local files are looked up in the folder of that name"
            raise RecipeError("has no name", where=source.where(root), mend=mend)
        folder = data / item["name"]
        if not folder.is_dir():
            mend = f"give a folder that holds one for each task, such as {item['name']}"
            raise RecipeError("no such folder", where=folder, mend=mend)
        if root in source.parts:
            origin = source.parts[root]
            origin = _point(item, ("task",), origin, folder)
            source = replace(source, parts={**source.parts, root: origin})
        else:
            source = _point(item, root, source, folder)
    return source


def _point(task: dict[str, Any], place: FieldPath, source: Source, data: Path) -> Source:
    """Point one task, which stands at `place`, at its local files."""
    spec = task["data"]
    moved: dict[FieldPath, FieldPath] = {}
    if data.is_file():
        task["data"] = {"path": str(data.resolve())}
        return source
    local = spec.get("local") if isinstance(spec, dict) else None
    root: FieldPath = (*place, "data", "local")
    if not isinstance(local, dict):
        local, root = spec if isinstance(spec, dict) else {"path": spec}, (*place, "data")
        if "hub" in local:
            mend = "add local: {train: FILE, test: FILE} under data, relative to that folder"
            raise RecipeError("names no local files", where=source.where(root), mend=mend)
    files: dict[str, Any] = {}
    for key, value in local.items():
        if key in ("path", "train", "validation", "test"):
            names = value if isinstance(value, list) else [value]
            files[key] = [str(data.resolve() / str(name)) for name in names]
            moved[*place, "data", key] = (*root, key)
        elif root[-1] == "local":
            task[key] = value
            moved[*place, key] = (*root, key)
    task["data"] = files
    lines = dict(source.lines)
    for target, origin in moved.items():
        for old, line in source.lines.items():
            if old[: len(origin)] == origin:
                lines[(*target, *old[len(origin) :])] = line
    return replace(source, lines=lines)
