"""Attention with gradient over rows of varied lengths: PyTorch's fused kernel on padded rows against `base/blocked.py`.

Both compute the same causal attention of 9 query heads over 3 key heads of 64 dimensions, forward and backward, behind
a front that all rows see. They take turns (A B A B). Printed for each batch are milliseconds of processor time, median
and range over the turns, and the relative error of the gradients of queries against float64. `blocked.worth` says where
the second one is taken: not for long rows of one length without a front.

Run: `python benchmarks/attention.py` (a minute).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kamerton.base import blocked

HEADS, KEY_HEADS, WIDTH = 9, 3, 64
BATCHES = {
    "16 rows of 150 to 340": [150 + 12 * (7 * i % 16) for i in range(16)],
    "8 rows of 512": [512] * 8,
    "2 rows of 2,048": [2048] * 2,
}
Attention = Callable[[list[Tensor], list[int]], Tensor]


def padded(parts: list[Tensor], lengths: list[int]) -> Tensor:
    """As without `blocked.py`: rows padded to the longest, the front repeated for each, a mask added."""
    query, key, value, front_key, front_value = parts
    groups, front, longest = HEADS // KEY_HEADS, front_key.shape[1], max(lengths)
    own = [torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True) for x in (query, key, value)]
    q, k, v = (x.transpose(1, 2) for x in own)
    fronts = (x[None].expand(len(lengths), -1, -1, -1) for x in (front_key, front_value))
    k, v = (torch.cat([f, x], dim=2).repeat_interleave(groups, 1) for f, x in zip(fronts, (k, v), strict=True))
    mask = None
    if front:
        seen = torch.ones(longest, front + longest, dtype=torch.bool).tril(front)
        mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, torch.finfo(q.dtype).min)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)
    return torch.cat([row[:n] for row, n in zip(out, lengths, strict=True)])


def ours(parts: list[Tensor], lengths: list[int]) -> Tensor:
    query, key, value, front_key, front_value = parts
    return blocked.attend(query, key, value, front_key, front_value, lengths, WIDTH**-0.5)


def timed(attention: Attention, parts: list[Tensor], lengths: list[int], back: Tensor) -> tuple[float, Tensor]:
    """Milliseconds of a forward and a backward pass, and the gradient of the queries."""
    own = [x.detach().requires_grad_() for x in parts]
    start = time.process_time()
    out = attention(own, lengths)
    found = torch.autograd.grad(out, own, back.to(out.dtype), allow_unused=True)[0]
    return 1000 * (time.process_time() - start), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--front", type=int, nargs="*", default=[0, 20])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| rows | front | type | fused kernel, ms | error | blocks, ms | error | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, lengths in BATCHES.items():
        for front in args.front:
            generator, t = torch.Generator().manual_seed(0), sum(lengths)
            shapes = [(t, HEADS, WIDTH), *[(t, KEY_HEADS, WIDTH)] * 2, *[(KEY_HEADS, front, WIDTH)] * 2]
            for dtype in (torch.float32, torch.bfloat16):
                parts = [torch.randn(*s, generator=generator).to(dtype) for s in shapes]
                back = torch.randn(t, HEADS, WIDTH, generator=generator).to(dtype)
                exact = timed(padded, [x.double() for x in parts], lengths, back)[1]
                both = {f: [timed(f, parts, lengths, back) for _ in range(1)] for f in (padded, ours)}
                for _ in range(args.turns):
                    for f in both:
                        both[f].append(timed(f, parts, lengths, back))
                cells, middle = [], []
                for f in (padded, ours):
                    times = sorted(ms for ms, _ in both[f][1:])  # the first one warms up
                    wrong = float((both[f][-1][1].double() - exact).norm() / exact.norm())
                    middle.append(statistics.median(times))
                    cells.append(f"{middle[-1]:.0f} ({times[0]:.0f}–{times[-1]:.0f}) | {wrong:.1e}")
                kind = str(dtype).removeprefix("torch.")
                ratio = f"{middle[0] / middle[1]:.1f}"
                print(f"| {name} | {front} | {kind} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
