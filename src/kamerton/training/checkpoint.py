"""Checkpoints: trained weights, optimiser state and position, written atomically, as safetensors and JSON.

A checkpoint is a folder `step-000120/` with `weights.safetensors` (what is trained), `optimiser.safetensors` and
`state.json` (position, best loss, learning curve, and checksums of both files and of itself). It is written under
another name and renamed, so a folder with the final name is whole; if a file in it was damaged since, the checksum
tells, and the checkpoint before it is used. There is no random state to keep: every step seeds its generators from
(seed, step).

Of several processes the first one writes and reads, and tells the others what it read; what is written holds whole
parameters, so nothing in a checkpoint says how many processes there were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kamerton import processes
from kamerton.errors import ModelError
from kamerton.files import checksum, refusals
from kamerton.tasks.example import fingerprint
from kamerton.training.distribution import placed, whole

SUM = "sha256"
"""In the head of a file of weights that stands alone: a checksum of them."""
KEEP = 2
"""Checkpoints that are kept: the last one, and one before it in case the last one is damaged."""


def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that require gradient, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def _written(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are written: whole, on the CPU; on processes that do not write, nothing."""
    out = {}
    for name, tensor in tensors.items():
        full = whole(tensor)  # all processes are asked for their parts
        if processes.first():
            out[name] = full.contiguous().cpu()
    return out


def save_weights(path: Path, module: nn.Module) -> None:
    """Write the trained parameters to one safetensors file, atomically, with a checksum of them.

    All processes call it, the first one writes.
    """
    weights = _written(trained_weights(module))
    if not processes.first():
        return
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        with refusals(path):
            save_file(weights, partial, metadata={SUM: _sum_of(weights)})
            _sync(partial)
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _sum_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors on the CPU, with their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(path: Path, module: nn.Module) -> None:
    """Read trained parameters back into a module of the same shape."""
    put_weights(_told(_read_weights(path, module) if processes.first() else {}), module)


def _told(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the first process has, on all of them; one after another, so that none is in memory twice."""
    if processes.count() == 1:
        return dict(tensors)
    shapes = processes.agreed({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
    out = {}
    for name, (shape, dtype) in shapes.items():
        tensor = tensors[name].contiguous() if processes.first() else torch.empty(shape, dtype=dtype)
        with processes.meeting() as group:
            group.broadcast(tensor, src=0)
        out[name] = tensor
    return out


def _read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    try:
        saved = load_file(path)
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(SUM)
        if told is not None and told != _sum_of(saved):
            raise OSError("its checksum does not match")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the weights cannot be read ({error})", where=path, mend="delete the cell and run again"
        ) from error
    own = trained_weights(module)
    if saved.keys() != own.keys() or any(saved[k].shape != own[k].shape for k in own):
        raise ModelError(
            "the weights belong to another parameterisation", where=path, mend="delete the cell and run again"
        )
    return saved


@torch.no_grad()
def put_weights(saved: Mapping[str, Tensor], module: nn.Module) -> None:
    """Trained parameters by name into a module."""
    for name, value in trained_weights(module).items():
        new = saved[name]
        value.copy_(new if type(new) is type(value) else placed(new, value))


def copied_weights(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters by name, as they are now."""
    return {name: value.clone() for name, value in trained_weights(module).items()}


@contextmanager
def weights_in_place(other: Mapping[str, Tensor], module: nn.Module) -> Iterator[None]:
    """A module with other trained parameters, for as long as this lasts."""
    own = copied_weights(module)
    put_weights(other, module)
    try:
        yield
    finally:
        put_weights(own, module)


def save_checkpoint(
    folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Any],
    others: Mapping[str, Tensor] | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint and drop all of this run's but the newest `KEEP`; those of other runs are left alone.

    All processes call it, the first one writes.

    Args:
        folder: holds the checkpoints of one run.
        state: what JSON can hold; `state["step"]` names the checkpoint.
        others: further tensors that belong to it (an objective's own networks, averages).
    """
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    weights = _written(trained_weights(module))
    moments = _written({
        f"{key}/{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, values in optimiser.state.items()
        for key, value in values.items()
    })  # fmt: skip
    more = _written(others or {})
    target = folder / f"step-{state['step']:06d}"
    if not processes.first():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(target) as partial:
        save_file(weights, partial / "weights.safetensors")
        save_file(moments, partial / "optimiser.safetensors")
        if more:
            save_file({k: v.clone() for k, v in more.items()}, partial / "others.safetensors")
        sums = {path.name: checksum(path) for path in sorted(partial.iterdir())}
        _write_state(partial, {**state, "checksums": sums})
    every = checkpoints(folder)
    if len(every) > KEEP:
        # another recipe may have left later steps in the folder; by their number alone this run's would go first
        for old in [path for path in every if _key_of(path) == state.get("key")][KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder that becomes the checkpoint `target` when the block has ended well, and else leaves nothing."""
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with refusals(target):
            partial.mkdir()
            yield partial
            for file in partial.iterdir():
                _sync(file)
            if target.exists():
                shutil.rmtree(target)
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """`state.json` with a checksum of itself in it."""
    plain = {name: value for name, value in state.items() if name != "checksum"}
    (folder / "state.json").write_text(json.dumps({**plain, "checksum": fingerprint(plain)}))


def _read_state(folder: Path) -> dict[str, Any]:
    """What `_write_state` wrote.

    Raises:
        ValueError: it is not that any more.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    known = state.pop("checksum", None)  # of checkpoints that were made before there was one: none
    if known is not None and known != fingerprint(state):
        raise ValueError("the checksum of state.json does not match")
    return state


def _key_of(path: Path) -> str | None:
    """The run that a checkpoint belongs to; None where it cannot be read."""
    try:
        found = json.loads((path / "state.json").read_text())
        return str(found["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if (p / "state.json").is_file()), reverse=True)


def adopt_checkpoint(source: Path, folder: Path, key: str) -> Path:
    """Let a run go on from another run's checkpoint: a copy of it, whole or not there, under this run's key.

    Args:
        source: a checkpoint (`step-…`); folder: of the run that goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    with _replacing(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        _write_state(partial, {**json.loads((partial / "state.json").read_text()), "key": key})
    return target


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of all runs below a folder, once what they led to is saved elsewhere."""
    for path in [*folder.rglob("step-*"), *folder.rglob(".partial-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.rglob("best.safetensors"):
        path.unlink()


def load_checkpoint(
    folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer, *, key: str
) -> tuple[dict[str, Any] | None, list[str]]:
    """Restore the newest whole checkpoint that belongs to this run.

    Args:
        key: fingerprint of the run; checkpoints of another run are left alone.

    Returns:
        The state, its further tensors under the name `others`, or None where there is no checkpoint, and a note for
        each damaged one that was passed over.
    """
    found, notes = _read(folder, module, key) if processes.first() else (None, [])
    state, notes = processes.agreed((found and found[0], notes))
    if state is None:
        return None, notes
    weights, moments, others = (_told(part) for part in (found[1:] if found else ({}, {}, {})))
    put_weights(weights, module)
    parameters = dict(module.named_parameters())
    for name, value in moments.items():
        key, _, parameter = name.partition("/")
        target = parameters[parameter]
        # AdamW keeps its step counter on the CPU unless fused on a GPU
        optimiser.state[target][key] = value.clone() if key == "step" else placed(value, target)
    return {**state, "others": others}, notes


def _read(
    folder: Path, module: nn.Module, key: str
) -> tuple[tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]] | None, list[str]]:
    """The newest whole checkpoint (state, weights, moments, further tensors), and a note for each damaged one."""
    notes = []
    for path in checkpoints(folder):
        try:
            state = _read_state(path)
            if state["key"] != key:
                continue
            if any(checksum(path / name) != value for name, value in state["checksums"].items()):
                raise ValueError("its checksum does not match")
            # all of it is read before any of it is used: what is damaged leaves no trace in the model
            weights = _read_weights(path / "weights.safetensors", module)
            moments = load_file(path / "optimiser.safetensors")
            known = trained_weights(module)
            if any(name.partition("/")[2] not in known for name in moments):
                raise ValueError("its optimiser is another one's")
            more = path / "others.safetensors"
            others = load_file(more) if more.name in state["checksums"] else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, ModelError) as error:
            reason = " ".join(f"{error}".split())
            notes.append(f"checkpoint {path.name} is damaged ({reason})")
            continue
        return (state, weights, moments, others), [f"{note}; the one before it was used" for note in notes]
    return None, [f"{note}; there is none before it, so training began anew" for note in notes]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
