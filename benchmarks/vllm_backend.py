"""Tokens a second of the torch backend and of vLLM on the same questions, in turns within one run.

    python benchmarks/vllm_backend.py --dtype bfloat16 --turns 3

The demo model answers general prompts greedily; both sides get the same questions, and answers of one length each
(`--tokens`) unless they end before. Each side answers a few questions first to warm up. vLLM's start is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time

from kamerton.api import load
from kamerton.evaluation.general_prompts import PROMPTS
from kamerton.exporting.for_vllm import Pool
from kamerton.inference import Sampling
from kamerton.methods.method import decode_through
from kamerton.tasks.example import Message


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--turns", type=int, default=3, help="turns of both sides")
    parser.add_argument("--questions", type=int, default=16, help="questions in one call")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--target", default="demo", help="what answers")
    asked = parser.parse_args()
    adapted = load(asked.target, dtype=asked.dtype)
    questions = [(Message("user", prompt),) for prompt in PROMPTS[: asked.questions]]
    sampling = Sampling(max_tokens=asked.tokens)
    torch_engine = adapted.engine
    with Pool(4096, asked.questions) as pool:
        pool.attach(adapted)
        engines = {"torch": torch_engine, "vllm": adapted.engine}
        rates: dict[str, list[float]] = {name: [] for name in engines}
        said: dict[str, list[tuple[int, ...]]] = {}
        for turn in range(asked.turns + 1):
            for name, engine in engines.items():
                decode_through(adapted, engine)
                some = questions if turn else questions[:2]
                start = time.perf_counter()
                answers = adapted.generate(some, sampling)
                seconds = time.perf_counter() - start
                said[name] = [a.tokens for a in answers]
                if turn:  # the first one warms up
                    rates[name].append(sum(len(a.tokens) for a in answers) / seconds)
        decode_through(adapted, engines["vllm"])
    same = sum(a == b for a, b in zip(said["torch"], said["vllm"], strict=True))
    for name, found in rates.items():
        print(f"{name:6} {statistics.median(found):7.1f} tokens/s, {min(found):.1f} to {max(found):.1f}")
    ratios = [b / a for a, b in zip(rates["torch"], rates["vllm"], strict=True)]
    print(f"vllm / torch {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"answers that are the same, token for token: {same} of {len(said['torch'])}")


if __name__ == "__main__":
    main()
