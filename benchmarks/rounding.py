"""Are greedy answers in bfloat16 as near to float32's with our attention as with transformers' own?

Answers in bfloat16 leave float32's sooner or later: two tokens that are nearly as likely change places by rounding. For
each prompt this script finds the first token where a bfloat16 answer leaves the float32 one, and asks the float32 model
how much likelier its own token was there. If the packed attention computed something wrong, its gaps would be larger
than those of transformers, or its answers would part sooner.

    python benchmarks/rounding.py --prompts 16 --tokens 24
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from contestants import base, hf, renderer
from kamerton.inference import Engine, Sampling
from workloads import prompts


def ours(dtype: str, asked: list[Any], tokens: int) -> list[list[int]]:
    """Greedy answers of exactly `tokens` tokens through packs."""
    endless = copy.copy(base(dtype).renderer)
    endless.end_ids = ()
    answers = Engine(base(dtype).model, endless).generate(asked, Sampling(max_tokens=tokens))
    return [list(a.tokens) for a in answers]


@torch.inference_mode()
def theirs(dtype: str, asked: list[Any], tokens: int) -> list[list[int]]:
    """The same through transformers' `generate`, one prompt at a time, so that nothing is padded."""
    model = hf(dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    out = []
    for conversation in asked:
        ids = torch.tensor([renderer().prompt(conversation)])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        out.append(made[0, ids.shape[1] :].tolist())
    return out


@torch.inference_mode()
def gap(conversation: Any, before: list[int], own: int, other: int) -> float:
    """Nats by which the float32 model (transformers' forward) prefers its own token to the other one."""
    ids = torch.tensor([[*renderer().prompt(conversation), *before]])
    log = hf("float32")(ids).logits[0, -1].float().log_softmax(-1)
    return float(log[own] - log[other])


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    print(
        "| prompts | computed by | answers that part | at token, mean | float32's gap there, nats: median (largest) |"
    )
    print("|---|---|---|---|---|")
    for shared in (False, True):
        asked = prompts(arguments.prompts, shared=shared)
        reference = theirs("float32", asked, arguments.tokens)
        for name, answers in (
            ("Kamerton, float32", ours("float32", asked, arguments.tokens)),
            ("Kamerton, bfloat16", ours("bfloat16", asked, arguments.tokens)),
            ("transformers, bfloat16", theirs("bfloat16", asked, arguments.tokens)),
        ):
            places, gaps = [], []
            for conversation, right, said in zip(asked, reference, answers, strict=True):
                place = next((i for i, (a, b) in enumerate(zip(right, said, strict=True)) if a != b), None)
                if place is not None:
                    places.append(place)
                    gaps.append(gap(conversation, right[:place], right[place], said[place]))
            where = f"{mean(places):.1f}" if places else "–"
            size = f"{median(gaps):.3f} ({max(gaps):.3f})" if gaps else "–"
            kind = "behind eight shots" if shared else "alone"
            print(f"| {len(asked)} {kind} | {name} | {len(places)} of {len(asked)} | {where} | {size} |", flush=True)


if __name__ == "__main__":
    main()
