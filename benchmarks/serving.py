"""Throughput of `kamerton serve`: many clients at once against one request after another.

Both sides take turns in one run, on one server in a process of its own; each turn asks the same questions. Reported are
tokens a second of each turn, their ratio within a turn, failed requests, times to the first token, and the server's
memory before, at its highest, and after.

    python benchmarks/serving.py                      # 64 clients, the demo model
    python benchmarks/serving.py --clients 16 --turns 1
    python benchmarks/serving.py --equality float32   # are answers those that are given alone?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

TOPICS = (
    "rain", "bridges", "bread", "violins", "glaciers", "clocks", "spices", "lighthouses", "beavers", "paper", "comets",
    "chess", "salt", "wool", "maps", "tea",
)  # fmt: skip


@dataclass
class Asked:
    """One request: its seconds, those to its first token, the tokens of its answer, and what went wrong."""

    seconds: float
    first: float
    tokens: int
    error: str = ""


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> Asked:
    """Ask one question, streamed."""
    question = f"Question {number}: tell me something about {TOPICS[number % len(TOPICS)]}."
    body: dict[str, Any] = {
        "model": "demo", "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "stream": True,
        "temperature": 0.7, "top_p": 0.95, "seed": number, "stream_options": {"include_usage": True},
    }  # fmt: skip
    start, first, written = time.perf_counter(), 0.0, 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return Asked(0, 0, 0, f"status {answer.status_code}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return Asked(0, 0, 0, str(event["error"]))
                if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.perf_counter() - start
                written = event["usage"]["completion_tokens"] if event.get("usage") else written
    except httpx.HTTPError as error:
        return Asked(0, 0, 0, repr(error))
    return Asked(time.perf_counter() - start, first, written)


async def turn(client: httpx.AsyncClient, count: int, tokens: int, at_once: bool) -> dict[str, Any]:
    """All questions, at once or one after another."""
    start = time.perf_counter()
    if at_once:
        asked = list(await asyncio.gather(*(ask(client, i, tokens) for i in range(count))))
    else:
        asked = [await ask(client, i, tokens) for i in range(count)]
    seconds = time.perf_counter() - start
    good = [a for a in asked if not a.error]
    return {
        "requests": count, "failed": [a.error for a in asked if a.error], "seconds": seconds,
        "tokens": sum(a.tokens for a in good), "tokens_per_second": sum(a.tokens for a in good) / seconds,
        "first": statistics.median(a.first for a in good) if good else None,
        "longest": max((a.seconds for a in good), default=None),
    }  # fmt: skip


def memory(process: psutil.Process) -> float:
    """Resident memory in MiB."""
    return float(process.memory_info().rss) / 2**20


async def measure(url: str, process: psutil.Process, args: argparse.Namespace) -> dict[str, Any]:
    """Turns of both sides."""
    limits = httpx.Limits(max_connections=args.clients + 4)
    turns: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await turn(client, 4, 8, True)  # warm: weights are brought into their layout
        await asyncio.sleep(1)
        before = memory(process)
        highest = before
        for _ in range(args.turns):
            alone = await turn(client, args.alone, args.tokens, False)
            together = await turn(client, args.clients, args.tokens, True)
            highest = max(highest, memory(process))
            await asyncio.sleep(1)
            ratio = together["tokens_per_second"] / alone["tokens_per_second"]
            turns.append({"alone": alone, "together": together, "ratio": ratio, "memory_after": memory(process)})
            print(
                f"alone {alone['tokens_per_second']:.1f} tokens/s, together {together['tokens_per_second']:.1f}, "
                f"{ratio:.1f} times; failed {len(alone['failed']) + len(together['failed'])}; memory "
                f"{memory(process):.0f} MiB", flush=True,
            )  # fmt: skip
    return {"turns": turns, "memory_before": before, "memory_highest_seen": highest}


def equality(dtype: str, count: int, tokens: int) -> dict[str, str]:
    """How many answers from a shared batch are, token for token, those that are given alone, by way of sampling."""
    from concurrent.futures import ThreadPoolExecutor

    from kamerton.base import load_base
    from kamerton.inference import Engine, Sampling
    from kamerton.inference.runner import BatchedEngine, Runner
    from kamerton.tasks.example import conversation

    base = load_base("demo", dtype=dtype)
    alone, runner = Engine(base.model, base.renderer), Runner()
    together = BatchedEngine(alone, runner)
    runner.start()
    ways = {"greedy": {}, "temperature 0.7, top_p 0.95": {"temperature": 0.7, "top_p": 0.95},
            "temperature 1": {"temperature": 1.0}}  # fmt: skip
    asked = [
        (way, conversation([("user", f"Question {i}: tell me something about {TOPICS[i % len(TOPICS)]}.")]),
         Sampling(max_tokens=tokens, seed=i, **options))
        for way, options in ways.items() for i in range(count)
    ]  # fmt: skip

    def one(request: Any) -> list[Any]:
        with runner.turn:
            return together.generate([request[1]], request[2])

    with ThreadPoolExecutor(len(asked)) as pool:
        shared = list(pool.map(one, asked))
    same = dict.fromkeys(ways, 0)
    for (way, question, sampling), answers in zip(asked, shared, strict=True):
        same[way] += answers[0].tokens == alone.generate([question], sampling)[0].tokens
    runner.close()
    return {way: f"{number} of {count}" for way, number in same.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--alone", type=int, default=12, help="requests of the side that asks one after another")
    parser.add_argument("--tokens", type=int, default=32, help="the longest answer")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("serving.json"))
    parser.add_argument("--equality", metavar="DTYPE", help="only count answers that are those given alone")
    args = parser.parse_args()
    if args.equality:
        print(json.dumps(equality(args.equality, 16, args.tokens)))
        return
    command = [sys.executable, "-m", "kamerton", "serve", "demo", "--port", "0", "--max-requests", str(args.clients)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "400"})
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        url = next(line for line in lines if "serving on" in line).split()[2].removesuffix("/v1;")
        result = asyncio.run(measure(url, psutil.Process(server.pid), args))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    ratios = [t["ratio"] for t in result["turns"]]
    result["ratio"] = {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    temporary = args.output.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    temporary.rename(args.output)
    print(f"ratio {result['ratio']['median']:.1f} ({min(ratios):.1f} to {max(ratios):.1f}); "
          f"memory {result['memory_before']:.0f} MiB before, {result['turns'][-1]['memory_after']:.0f} after; "
          f"written to {args.output}")  # fmt: skip


if __name__ == "__main__":
    main()
