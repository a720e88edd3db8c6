"""How long waiting threads should spin: a small model's steps, alone on the machine and two programs at once.

Each program trains a LLaMA of 1 M parameters on 8 rows of 128 tokens and decodes single tokens with it, with all cores.
GNU's OpenMP lets a thread that waits spin so many times before it sleeps (GOMP_SPINCOUNT); its own default is 300,000.
Settings take turns.

Run: `python benchmarks/waiting.py` (two minutes on two cores; `--together 1` leaves out the second program).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median


def one() -> None:
    """Print the milliseconds of a training step and of a decoding step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.randint(0, 4096, (8, 128))

    def train() -> None:
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    @torch.inference_mode()
    def decode() -> None:
        model(input_ids=rows[:1, :1])

    def milliseconds(run: Callable[[], None], seconds: float) -> float:
        run()
        found: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found) < 3:
            start = time.perf_counter()
            run()
            found.append(1000 * (time.perf_counter() - start))
        return median(found)

    print(milliseconds(train, 3), milliseconds(decode, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="*", default=[0, 5_000, 20_000, 300_000])
    parser.add_argument("--together", type=int, nargs="*", default=[1, 2], help="programs at once")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one()
        return
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for _ in range(args.turns):
        for together in args.together:
            for count in args.counts:
                environment = {**os.environ, "GOMP_SPINCOUNT": str(count)}
                running = [
                    subprocess.Popen(
                        [sys.executable, __file__, "--one"], env=environment, stdout=subprocess.PIPE, text=True
                    )
                    for _ in range(together)
                ]  # fmt: skip
                for program in running:
                    train, decode = map(float, program.communicate()[0].split())
                    found.setdefault((together, count), []).append((train, decode))
    print("| programs | spins | training step, ms | decoding step, ms |\n|---|---|---|---|")
    for (together, count), pairs in sorted(found.items()):
        cells = (f"{median(v):.1f} ({min(v):.1f}–{max(v):.1f})" for v in zip(*pairs, strict=True))
        print(f"| {together} | {count:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
