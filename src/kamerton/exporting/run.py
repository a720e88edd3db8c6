"""Export a model: written into a folder beside its place, read back by the programs that will load it, then renamed.

| format | what is written | read back by |
| --- | --- | --- |
| safetensors | a model folder, adapters merged into the weights | transformers |
| peft | an adapter beside its base | peft |
| gguf | one file for llama.cpp, and a Modelfile for Ollama | transformers, and llama.cpp where it is installed |
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kamerton.base.encoder_decoder import causal
from kamerton.base.load import DTYPES
from kamerton.base.quantise import kind_of
from kamerton.base.sources import read_gguf
from kamerton.errors import KamertonError
from kamerton.exporting import adapter_folder, gguf_file, weights
from kamerton.exporting.gguf_layouts import header_is_not_read
from kamerton.exporting.ollama import modelfile
from kamerton.exporting.verify import (
    Check,
    Probe,
    check_tokens,
    has_llama_cpp,
    llama_cpp,
    probe,
    through_llama_cpp,
    through_transformers,
)
from kamerton.files import expanded, whole_folder, write_json, write_text
from kamerton.methods.merge import TOLERANCE
from kamerton.methods.method import Adapted, Report

FORMATS = {"safetensors": tuple(weights.TYPES), "peft": (), "gguf": tuple(gguf_file.TYPES)}
"""The formats and the types of weights that each can be written in."""
ABOUT = "export.json"
"""Says what a folder holds and how it was checked; `force` replaces no folder without it."""
SHARD = "5GB"

_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BOUNDS = {**{kind: TOLERANCE[name] for kind, name in _TYPES.items()}, "q8_0": 4.0}
"""Largest difference of a logit that rounding to a type explains."""
_LLAMA_CPP = 0.5
"""What llama.cpp's own rounding adds: it keeps keys and values in f16, and multiplies in f16."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: that was written; `file` is the GGUF file in it, or None.
        format, type: as asked; the type of an adapter is that of its weights.
        bytes: of weights on disk.
        checks: what each program that read it back computed.
        notes: what the user should know.
    """

    folder: Path
    format: str
    type: str
    bytes: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    file: Path | None = None

    @property
    def difference(self) -> float:
        """Largest absolute difference of a logit that any program found."""
        return max(check.difference for check in self.checks)


def export(
    adapted: Adapted, output: str | Path, *, format: str = "safetensors", type: str | None = None,
    shard_size: str = SHARD, force: bool = False, report: Report | None = None, target: str = "",
) -> Exported:  # fmt: skip
    """Write a model for other programs, and check that they compute what it computes.

    Args:
        adapted: a base, or what a method made.
        output: the folder; it is there as a whole, checked, or not at all.
        format: of `FORMATS`.
        type: of weights: f32, f16, bf16, for gguf also q8_0; default: the base's own, for gguf f16.
        shard_size: the most that one file of safetensors holds.
        force: replace what an export wrote there before.
        report: told about progress.
        target: what was asked for, in the user's words; written down.

    Raises:
        KamertonError: the model cannot be written in this format, the place is taken, or there is no room.
        ModelError: what was written is not the model; nothing is left in `output` then.
    """
    folder = expanded(output).absolute()
    report = report or (lambda *_: None)
    kind = _check(adapted, folder, format, type, shard_size, force)
    report("computing probes", 0.0, "")
    probes = probe(adapted)
    report("computing probes", 1.0, "")
    work = _Work(adapted, kind, shard_size, probes, report)
    with whole_folder(folder, replace=force) as partial:
        checks, notes = {"safetensors": work.model_folder, "peft": work.adapter, "gguf": work.gguf}[format](partial)
        stored = sum(p.stat().st_size for p in (*partial.glob("*.safetensors"), *partial.glob("*.gguf")))
        about = {
            "target": target or adapted.method, "method": adapted.method, "base": adapted.base.info.name,
            "format": format, "type": kind, "bytes": stored, "checks": [asdict(check) for check in checks],
            "notes": notes,
        }  # fmt: skip
        write_json(partial / ABOUT, about)
    file = Path(output) / f"model-{kind}.gguf" if format == "gguf" else None
    return Exported(Path(output), format, kind, stored, tuple(checks), tuple(notes), file)


def _check(adapted: Adapted, folder: Path, format: str, type: str | None, shard_size: str, force: bool) -> str:
    """Refuse what cannot be written, before anything is computed; the type of the weights."""
    if format not in FORMATS:
        raise KamertonError(f"no format '{format}'", where="export", mend=f"use one of: {', '.join(FORMATS)}")
    if type is not None and type not in FORMATS[format]:
        names = ", ".join(FORMATS[format])
        mend = f"use one of: {names}" if names else "leave --type out: an adapter is written as it was trained"
        raise KamertonError(f"{format} has no type '{type}'", where="export", mend=mend)
    if folder.exists() and not folder.is_dir():
        raise KamertonError("is a file", where=folder, mend="choose another --output")
    if folder.is_dir() and any(folder.iterdir()):
        ours = (folder / ABOUT).is_file()
        if not force or not ours:
            mend = "give --force to replace it, or choose another --output" if ours else "choose another --output"
            raise KamertonError("is there already", where=folder, mend=mend)
    if not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", shard_size):
        raise KamertonError(f"--shard-size {shard_size} is no size", mend="write a number with KB, MB, GB or TB: 5GB")
    weights.check_asked_plainly(adapted)
    causal(adapted.engine.model, "export")
    base = adapted.base
    own = next(kind for kind, name in _TYPES.items() if name == base.info.dtype)
    kind = type or {"gguf": "f16"}.get(format, own)
    count = base.info.parameters
    read = count * DTYPES[base.info.dtype].itemsize
    if format == "peft":
        tuned = adapter_folder.check_adapter(adapted.tuned, adapted.method)
        disk, memory = sum(p.numel() * p.element_size() for p in tuned.module.parameters() if _trained(p)), read
    else:
        weights.check_plain(adapted)
        if format == "gguf":
            gguf_file.check_gguf(base.model.hf, adapted.renderer)
            disk, read = gguf_file.expected_bytes(count, kind), 2 * read
        else:
            disk = count * weights.TYPES[kind].itemsize
        memory = max(weights.copied_bytes(adapted, weights.TYPES[kind] if format == "safetensors" else None), read)
    weights.check_room(folder, disk, memory)
    return kind


def _trained(parameter: Any) -> bool:
    return bool(parameter.requires_grad)


@dataclass
class _Work:
    """One export: the writing and the reading back of each format."""

    adapted: Adapted
    kind: str
    shard_size: str
    probes: Probe
    report: Report

    @property
    def bound(self) -> float:
        """The larger of what the type and what computing in the base's data type explain."""
        return max(_BOUNDS[self.kind], TOLERANCE[self.adapted.base.info.dtype])

    def step(self, stage: str, call: Callable[[], Any]) -> Any:
        self.report(stage, 0.0, "")
        result = call()
        self.report(stage, 1.0, "")
        return result

    def model_folder(self, folder: Path) -> tuple[list[Check], list[str]]:
        adapted, device = self.adapted, self.adapted.base.info.device
        hf = self.step("merging", lambda: weights.plain_weights(adapted, weights.TYPES[self.kind]))
        self.report("writing", 0.0, "")
        written = weights.write_folder(hf, adapted.renderer, folder, self.shard_size)
        self.report("writing", 1.0, "")
        del hf
        self.report("checking", 0.0, "bits and tokenizer")
        weights.check_tokenizer(folder, adapted.renderer)
        read = weights.read_folder(folder, written, DTYPES[adapted.base.info.dtype], device)
        self.report("checking", 0.5, "logits in transformers")
        check = self.probes.check("transformers", through_transformers(read), self.bound, folder)
        self.report("checking", 1.0, "")
        return [check], self.plain_notes()

    def adapter(self, folder: Path) -> tuple[list[Check], list[str]]:
        adapted, tuned = self.adapted, self.adapted.tuned
        assert tuned is not None
        self.step("writing", lambda: adapter_folder.write_adapter(adapted.base, tuned, adapted.method, folder))
        weights.write_tokenizer(adapted.renderer, folder)
        self.report("checking", 0.0, "tokenizer")
        weights.check_tokenizer(folder, adapted.renderer)
        peft = adapter_folder.load_with_peft(adapted.base, tuned, folder)
        peft = adapter_folder.settled(peft, DTYPES[adapted.base.info.dtype])
        self.report("checking", 0.5, "logits in peft")
        check = self.probes.check("peft", through_transformers(peft), TOLERANCE[adapted.base.info.dtype], folder)
        self.report("checking", 1.0, "")
        notes = self.plain_notes()
        own = adapter_folder.needed_import(tuned)
        if own:
            notes.append(f"peft loads it after `import {own}`")
        if kind_of(tuned.model.hf):
            notes.append("it was trained beside a base in 4 bits (nf4); README.md says how to load that")
        return [check], notes

    def gguf(self, folder: Path) -> tuple[list[Check], list[str]]:
        adapted, base = self.adapted, self.adapted.base
        path = folder / f"model-{self.kind}.gguf"
        hf = self.step("merging", lambda: weights.plain_weights(adapted, None))
        notes = gguf_file.write_gguf(
            hf, adapted.renderer, path, self.kind, name=base.info.name,
            progress=lambda share, text: self.report("writing", share, text),
        )  # fmt: skip
        config = hf.config
        del hf
        self.report("checking", 0.0, "logits in transformers")
        told = copy.deepcopy(config) if header_is_not_read(config) else None
        if told is not None:
            notes.append("transformers was told the configuration: not all of this header is read by it")
        read = read_gguf(path, DTYPES[base.info.dtype], told).to(base.info.device).eval()
        checks = [self.probes.check("transformers", through_transformers(read), self.bound, path)]
        del read
        if has_llama_cpp():
            self.report("checking", 0.5, "logits and tokens in llama.cpp")
            with llama_cpp(path, max(map(len, self.probes.rows))) as model:
                check_tokens(model, adapted.renderer, path)
                checks.append(self.probes.check("llama.cpp", through_llama_cpp(model), self.bound + _LLAMA_CPP, path))
        else:
            notes.append("llama.cpp has not read the file; for that: pip install 'kamerton[llama-cpp]'")
        self.report("checking", 1.0, "")
        text, more = modelfile(adapted.renderer, path.name, getattr(config, "max_position_embeddings", None))
        write_text(folder / "Modelfile", text)
        return checks, [*notes, *more, *self.plain_notes()]

    def plain_notes(self) -> list[str]:
        plain = "the base has no chat template; the one that kamerton asks it by was written"
        return [plain] if self.adapted.renderer.plain else []
