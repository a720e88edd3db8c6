"""What `peers.py` measures: each part with its contestants' jobs, its peer's settings, its check and its target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OURS = "Kamerton"


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        unit: what a contestant does so many of in a second.
        jobs: for each contestant its job (see `contestants.py`); the first one is Kamerton's, the second its peer's.
        check: how the results of a turn are compared (a function of this file), "" for not at all.
        fresh: a new process for every turn (training leaves much behind).
        scout: settings of the peer; the fastest of one turn each goes into the turns.
        needs: folder of a data set without which the part is left out.
        target: how many times as fast as the peer Kamerton is meant to be; `memory`: the share of its peak.
    """

    name: str
    unit: str
    jobs: dict[str, dict[str, Any]]
    check: str = ""
    fresh: bool = False
    scout: tuple[dict[str, Any], ...] = ()
    turns: int = 3
    needs: str = ""
    target: float | None = None
    memory: float | None = None


def parts(*, quick: bool, dtype: str, steps: int | None = None) -> list[Part]:
    """All measurements.

    Args:
        quick: short ones.
        dtype: what is trained, generated and scored in; the checks of agreement are in float32.
        steps: training steps of a turn.
    """
    return [
        *_training(quick=quick, dtype=dtype, steps=steps), *_generation(quick=quick, dtype=dtype),
        *_scoring(quick=quick, dtype=dtype), *_whole(quick=quick, dtype=dtype),
    ]  # fmt: skip


def _training(*, quick: bool, dtype: str, steps: int | None) -> list[Part]:
    out = []
    counts = {"dates": (3, 1), "gsm8k": (2, 1)} if quick else {"dates": (4, 1), "gsm8k": (3, 1)}
    tried = ("packed", "grouped", "padding-free", "padded")
    every = ("grouped", "padded")  # what transformers' Trainer has too
    rows = [
        ("lora", "dates"),
        ("lora", "gsm8k"),
        ("full", "gsm8k"),
        ("prompt-tuning", "gsm8k"),
        ("prefix-tuning", "gsm8k"),
    ]
    for method, data in rows:
        count, warm = counts[data]
        same = {"data": data, "steps": steps or count, "warm": warm, "dtype": dtype, "method": method}
        soft = method in ("prompt-tuning", "prefix-tuning")
        peer = {"job": "train_peft" if soft else "train_trl", **same}
        name = "" if method == "lora" else f"{method}-"
        target = {"lora": 2.0, "full": 1.5}.get(method, 2.0) if data == "gsm8k" else None
        out.append(Part(
            f"train-{name}{data}-{dtype}", "tokens",
            {OURS: {"job": "train_kamerton", **same}, "Trainer" if soft else "TRL": {**peer, "setting": tried[soft]}},
            fresh=True, scout=() if quick else tuple({**peer, "setting": s} for s in tried if s in every or not soft),
            needs="" if data == "dates" else data, target=target,
            memory=0.6 if (method, data) == ("lora", "gsm8k") else None,
        ))  # fmt: skip
    for name, method in (("train-loss-check", "lora"), ("train-full-loss-check", "full")):
        same = {"data": "dates", "steps": 1, "warm": 0, "dtype": "float32", "method": method}
        out.append(Part(
            name, "tokens",
            {OURS: {"job": "train_kamerton", **same}, "TRL": {"job": "train_trl", **same, "setting": "padded"}},
            check="losses", fresh=True, turns=1,
        ))  # fmt: skip
    for method in ("prompt-tuning", "prefix-tuning"):
        job = {"job": "soft_losses", "data": "dates", "method": method}
        out.append(Part(f"train-{method}-loss-check", "batches", {OURS: job, "peft": job}, check="own_losses", turns=1))
    return out


def _generation(*, quick: bool, dtype: str) -> list[Part]:
    out = []
    sizes = [(dtype, batch, shared) for batch, shared in ((1, False), (16, False), (16, True), (64, False), (64, True))]
    for kind, batch, shared in dict.fromkeys([*sizes, ("float32", 1, False), ("float32", 16, True)]):
        same = {"batch": batch, "shared": shared, "dtype": kind, "new": 8 if quick else 64}
        peer = {"job": "generate_transformers", **same}
        tried = ("eager", "static", "compiled") if batch == 1 and not quick else ()
        out.append(Part(
            f"generate-{kind}-{batch}{'-shared' if shared else ''}", "tokens",
            {OURS: {"job": "generate_kamerton", **same}, "transformers": peer}, check="answers",
            turns=5 if batch == 1 else 3, scout=tuple({**peer, "setting": s} for s in tried),
            target=2.0 if batch == 1 else None,
        ))  # fmt: skip
    same = {"questions": 4, "group": 2, "new": 8} if quick else {"questions": 16, "group": 8}
    jobs = {who: {"job": f"rollouts_{who.lower()}", **same, "dtype": dtype} for who in (OURS, "transformers")}
    out.append(Part(f"rollouts-{dtype}-16x8", "tokens", jobs, check="logprobs", needs="gsm8k", target=4.0))
    return out


def _scoring(*, quick: bool, dtype: str) -> list[Part]:
    out = []
    many = () if quick else ((dtype, 500),)
    for kind, few in dict.fromkeys([(dtype, 1), (dtype, 20), *many, ("float32", 1)]):
        harness = {"job": "score_lm_eval", "questions": 1, "dtype": kind, "batch": 8}
        sizes_ = () if quick or kind != dtype or few != 500 else tuple({**harness, "batch": n} for n in (1, 8, 32))
        jobs = {OURS: {"job": "score_kamerton", "questions": few, "dtype": kind}, "lm-eval": harness}
        if few == 20:
            jobs[f"{OURS}, rank"] = {"job": "rank_kamerton", "questions": few, "dtype": kind}
        out.append(Part(
            f"score-{kind}-{few}", "choices", jobs, check="scores", scout=sizes_,
            turns=1 if kind != dtype or few == 500 else 2 if few > 1 else 3, target=10.0 if few == 500 else None,
        ))  # fmt: skip
    return out


def _whole(*, quick: bool, dtype: str) -> list[Part]:
    step = (
        {"questions": 2, "group": 4, "new": 16, "steps": 2}
        if quick
        else {"questions": 8, "group": 8, "new": 64, "steps": 3}
    )
    ten = {"methods": ["zero-shot", "prompt-tuning"]} if quick else {}
    return [
        Part(
            f"grpo-{dtype}-8x8", "steps", {OURS: {"job": "grpo_kamerton", **step, "dtype": dtype},
            "TRL": {"job": "grpo_trl", **step, "dtype": dtype}}, fresh=True, turns=2, target=3.0,
        ),
        Part(
            f"compare-{dtype}-ten", "methods", {OURS: {"job": "compare_kamerton", "dtype": dtype, **ten},
            "TRL, peft, lm-eval": {"job": "compare_peers", "dtype": dtype, **ten}}, check="matches", fresh=True,
            turns=1, target=3.0,
        ),
    ]  # fmt: skip
