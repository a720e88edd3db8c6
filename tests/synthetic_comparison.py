"""A made-up comparison folder, the same for the same seed, in the layout that the runner writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kamerton.evaluation.metrics import get_metric
from kamerton.tasks.example import Example, Message

# label, method, skill (probit), seed deviation, trained parameters, training seconds, shots in the prompt
FIVE: tuple[tuple[str, str, float, float, int, float, int], ...] = (
    ("zero-shot", "zero-shot", -2.2, 0.0, 0, 0.0, 0),
    ("few-shot", "few-shot", -0.6, 0.15, 0, 0.0, 8),
    ("prompt-tuning", "prompt-tuning", 0.2, 0.3, 9_216, 180.0, 0),
    ("lora", "lora", 1.35, 0.05, 460_800, 95.0, 0),
    ("full", "full", 1.5, 0.05, 134_515_008, 210.0, 0),
)


def twenty() -> tuple[tuple[str, str, float, float, int, float, int], ...]:
    rows = list(FIVE)
    for i, rank in enumerate((1, 2, 4, 16, 32, 64)):
        rows.append((f"lora-rank-{rank}", "lora", 1.0 + 0.08 * i, 0.06, 57_600 * rank, 80.0 + 9 * i, 0))
    for shots in (1, 2, 4, 16):
        rows.append((f"few-shot-{shots}-nearest", "few-shot", -1.2 + 0.2 * shots**0.5, 0.0, 0, 0.0, shots))
    rows += [
        ("self-consistency", "self-consistency", -0.4, 0.1, 0, 0.0, 8),
        ("chain-of-thought", "chain-of-thought", -1.0, 0.1, 0, 0.0, 4),
        ("prefix-tuning", "prefix-tuning", 0.6, 0.2, 368_640, 200.0, 0),
        ("bottleneck-adapter", "adapter", 1.2, 0.05, 1_200_000, 120.0, 0),
        ("gan-prompt", "gan-prompt", 0.7, 0.25, 2_300_000, 340.0, 0),
    ]
    return tuple(rows)


QUESTIONS = (
    "3 March 2019",
    "le 14 juillet 1998",
    "31. Dezember 2001",
    "5 мая 2024 г.",
    "2012年8月9日",
    "17 de abril de 1985",
)


def write_comparison(
    folder: Path,
    methods: Sequence[tuple[str, str, float, float, int, float, int]] = FIVE,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    examples: int = 240,
    seed: int = 0,
    metrics: Sequence[str] = ("exact-match", "token-f1"),
    missing: Sequence[tuple[str, int]] = (),
    failed: Sequence[tuple[str, int]] = (),
    hostile: str = "",
    clock: float = 1.0,
) -> Path:
    """Write the folder. `missing` cells are absent, `failed` ones say so, `clock` scales all times."""
    rng = np.random.default_rng(seed)
    tests = []
    for i in range(examples):
        y, m, d = 1950 + int(rng.integers(80)), 1 + int(rng.integers(12)), 1 + int(rng.integers(28))
        question = f"{QUESTIONS[i % len(QUESTIONS)]} ({d}/{m}/{y}){hostile}"
        messages = (Message("system", "Write the date as YYYY-MM-DD."), Message("user", question))
        group = "seen" if i % 2 else "unseen"
        tests.append(Example(f"test-{i:04}", messages, (f"{y:04}-{m:02}-{d:02}",), group=group))
    _lines(folder / "test.jsonl", [_example(e) for e in tests])
    judges = [get_metric(name, tests) for name in metrics]
    difficulty = rng.normal(size=examples) + np.array([-0.5 if e.group == "unseen" else 0.2 for e in tests])
    for label, method, skill, deviation, parameters, seconds, shots in methods:
        taste = 0.5 * rng.normal(size=examples)
        fixed = rng.normal(size=examples)
        for s in seeds:
            noise = fixed if deviation == 0 else rng.normal(size=examples)
            right = skill + deviation * rng.normal() * 1.0 + difficulty + taste + 0.6 * noise > 0
            answers = [
                _answer(e, bool(r), i) + (hostile if i % 3 == 0 and not r else "")
                for i, (e, r) in enumerate(zip(tests, right, strict=True))
            ]
            place = folder / "cells" / label / f"seed-{s}"
            record: dict[str, Any] = {"label": label, "method": method, "seed": s, "status": "ok"}
            if (label, s) in missing:
                continue
            place.mkdir(parents=True, exist_ok=True)
            if (label, s) in failed:
                record |= {"status": "failed", "error": f"out of memory: 2.1 GB wanted, 1.9 GB free{hostile}"}
                (place / "cell.json").write_text(json.dumps(record))
                continue
            statistics = {j.name: j.statistics(answers, tests) for j in judges}
            told = {"details": {"reasoning": f"Day, month, year.{hostile}", "votes": {"a": 3}}}
            lines = [
                {
                    "id": e.id, "answer": a, "statistics": {k: v[i].tolist() for k, v in statistics.items()},
                    **(told if shots else {}),
                }
                for i, (e, a) in enumerate(zip(tests, answers, strict=True))
            ]  # fmt: skip
            _lines(place / "answers.jsonl", lines)
            if parameters:
                _lines(place / "curve.jsonl", _curve(rng, skill, clock))
            trained = 60_000 + int(rng.integers(900)) if parameters else 0
            prompt = 61.0 + 25.0 * shots
            kl = 0.0 if not parameters else 0.002 * parameters**0.28 * (1 + 0.1 * rng.random())
            record |= {
                "fingerprint": f"{label}-{s}",
                "options": {"shots": shots} if shots else {"learning_rate": 0.001} if parameters else {},
                "chosen": {"learning_rate": 0.001} if parameters else {},
                "search": [{"learning_rate": 0.001, "validation_loss": 0.31, "tokens": 4096}] if parameters else [],
                "metrics": {j.name: float(j.aggregate(statistics[j.name].sum(0), float(examples))) for j in judges},
                "seconds": {"fit": seconds * clock * (1 + 0.1 * rng.random()), "evaluate": 20.0 * clock},
                "tokens": {"trained": trained, "prompt": int(prompt * examples), "generated": 10 * examples},
                "flops": {"fit": 6.0 * 1.3e8 * trained, "evaluate": 2.0 * 1.3e8 * (prompt + 10) * examples},
                "peak_memory_bytes": int((1.1e9 + 12 * parameters) * clock),
                "trainable_parameters": parameters,
                "disk_bytes": 4 * parameters,
                "latency_seconds": (0.2 + 0.002 * prompt) * clock,
                "tokens_per_answer": {"prompt": prompt, "generated": 10.2},
                "forgetting": {"bits_per_byte": 1.0 + kl / 4, "bits_per_byte_base": 1.0, "kl": kl},
                "marks": [f"fragile{hostile}"] if label == "prompt-tuning" else [],
                "findings": _findings(shots, s, hostile),
                "notes": [f"3 of 256 training examples were cut to 512 tokens{hostile}"] if parameters else [],
            }
            (place / "cell.json").write_text(json.dumps(record))
    settings = {
        "name": f"dates{hostile}",
        "recipe": "dates.yaml",
        "base": {"name": "SmolLM2-135M-Instruct", "parameters": 134_515_008, "dtype": "float32", "device": "cpu"},
        "task": {
            "name": "dates",
            "source": "made up",
            "metrics": list(metrics),
            "sizes": {"train": 512, "validation": 96, "test": examples},
            "notes": ["2 duplicates across splits were removed from training"],
        },
        "methods": [{"label": m[0], "method": m[1], "options": {}} for m in methods],
        "seeds": list(seeds),
        "budget": {"tokens": 60_000},
        "versions": {"python": "3.12.1", "torch": "2.13.0", "transformers": "5.1.0"},
        "machine": {"cpu": "2 cores", "memory": "8 GB"},
        "command": "kamerton compare dates.yaml",
        "kamerton": "0.1.0",
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "recipe.yaml").write_text("base: demo\ntask: dates\nmethods: [zero-shot, lora]\n")
    return folder


def _answer(example: Example, right: bool, i: int) -> str:
    reference = example.answers[0]
    if right:
        return reference
    year, month, day = reference.split("-")
    return ("", f"{year}-{day}-{month}", f"The date is {reference}, as asked.", f"{year}-{month}-01x")[i % 4]


def _curve(rng: np.random.Generator, skill: float, clock: float) -> list[dict[str, Any]]:
    lines = []
    for step in range(1, 121):
        loss = 0.9 * np.exp(-step / (20 if skill > 1 else 50)) * 3 + 0.25 / (1 + skill) + 0.05 * rng.random()
        line = {"step": step, "tokens": 500 * step, "seconds": 0.8 * step * clock, "loss": loss, "learning_rate": 1e-3}
        if step % 20 == 0:
            line["validation_loss"] = loss + 0.1
        lines.append(line)
    return lines


def _example(e: Example) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in e.messages]
    return {"id": e.id, "messages": messages, "answers": list(e.answers), "choices": [], "group": e.group}


def _lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _findings(shots: int, seed: int, hostile: str) -> list[dict[str, Any]]:
    """A table of words and numbers and a curve, as prompting methods give them; numbers differ between seeds."""
    if not shots:
        return []
    phrasings = [[f"Write it as ISO 8601.{hostile}", 0.2 + seed / 100], ["Give the date.", 0.1]]
    curve = [[n, 0.3 + 0.05 * i + seed / 100] for i, n in enumerate((1, 2, 4, 8))]
    return [
        {
            "title": "Phrasings",
            "columns": ["phrasing", "validation"],
            "rows": phrasings,
            "curve": False,
            "note": "on 96",
        },
        {"title": "Votes", "columns": ["samples", "exact match"], "rows": curve, "curve": True, "note": ""},
    ]
