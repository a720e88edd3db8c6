"""Shares of domains: documents are sampled so that the bytes of each domain are in the proportion of its weight.

The corpus is the largest that the weights allow, where no document is taken more than `repeat` times. Which documents
are taken follows from a hash of their ids and the seed, so it does not depend on the workers, and a larger mix of the
same recipe contains a smaller one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from kamerton.errors import RecipeError
from kamerton.files import write_json
from kamerton.text.corpus.executor import Pool, Report
from kamerton.text.corpus.options import Mix
from kamerton.text.corpus.step import COPIES, SIZE, Step, domain_of
from kamerton.text.corpus.whole_corpus import Numbers, WholeStep

_NOTE = np.dtype([("domain", "u8"), ("key", "u8"), ("bytes", "u8")])


def _hash(text: str, seed: int = 0) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(text.encode(), seed)


class Weighing:
    """What is noted of a document."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, doc: Document) -> tuple[int, int, int]:
        return _hash(domain_of(doc)), _hash(doc.id, self.seed), doc.metadata[SIZE]


class Mixing(WholeStep):
    """Samples documents by the weights of their domains."""

    options: Mix

    def sketch(self, folder: Path) -> PipelineStep:
        return Numbers(str(folder), Weighing(self.options.seed), _NOTE)

    def decide(self, folder: Path, tasks: int, pool: Pool, report: Report) -> None:  # noqa: ARG002
        rows = np.concatenate([np.load(folder / f"{rank:05d}.npy", allow_pickle=False) for rank in range(tasks)])
        here = {int(name): rows[rows["domain"] == name] for name in np.unique(rows["domain"])}
        bytes_of = {name: int(part["bytes"].sum()) for name, part in here.items()}
        weights = {_hash(name): weight for name, weight in (self.options.weights or {}).items()}
        if not weights:  # as they are; only their size is limited
            weights = {name: float(size) for name, size in bytes_of.items()}
        for name in self.options.weights or {}:
            if _hash(name) not in here:
                raise RecipeError(
                    f"no documents of domain {name!r} are left to mix", mend="check weights: and what the steps reject"
                )
        scale = min(bytes_of[name] * self.options.repeat / weight for name, weight in weights.items())
        if self.options.bytes is not None:
            scale = min(scale, self.options.bytes / sum(weights.values()))
        decided = {}
        for domain, part in here.items():
            times = weights.get(domain, 0.0) * scale / max(bytes_of[domain], 1)
            often, rest = int(times + 1e-9), times - int(times + 1e-9)
            order = np.argsort(part["key"], kind="stable")
            reach = int(np.searchsorted(np.cumsum(part["bytes"][order]), rest * bytes_of[domain] + 0.5, side="right"))
            below = int(part["key"][order][reach]) if reach < len(order) else 1 << 64
            decided[str(domain)] = [often, below if rest > 1e-12 else 0]
        write_json(folder / "mix.json", decided, lasting=False)

    def judging(self, stage: Path, folder: Path) -> PipelineStep:
        return Sample(str(stage), self.label, str(folder), self.options.seed)


class Sample(Step):
    """Takes a document as often as its domain and its key say."""

    def __init__(self, stage: str, label: str, folder: str, seed: int) -> None:
        super().__init__(stage, label)
        self.notes, self.seed = folder, seed

    def begin(self, rank: int) -> None:  # noqa: ARG002
        import json

        self.decided = json.loads((Path(self.notes) / "mix.json").read_text(encoding="utf-8"))

    def judge(self, doc: Document) -> str | None:
        often, below = self.decided[str(_hash(domain_of(doc)))]
        copies = often + (_hash(doc.id, self.seed) < below)
        if not copies:
            return "not sampled by the mix"
        doc.metadata[COPIES] = copies
        return None
