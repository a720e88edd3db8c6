"""How much of the way to the references a discriminator knows on a real task, and how that grows with its training.

A static soft prompt is trained with supervision. At the positions of all references the frozen base's features and the
tuned model's last states are computed once. Then discriminators are trained on half of the references against tokens
drawn from the model, as the adversarial stage does, for several settings. Printed, on the other half and on validation
examples: the AUC; the scale with the least loss (1: the scores are the log-odds that they are taken for); and the nats
a token by which the model tilted by the scaled scores, π e^(a·d), has the references likelier than the model itself.

Run: `python benchmarks/discriminators_task.py examples/gan_prompt/e2e.yaml --data FOLDER` (about 15 minutes of a core).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from discriminators import lesson
from kamerton.base import load_base
from kamerton.inference.features import Features
from kamerton.methods import get_method, parse_options
from kamerton.methods.method import Run
from kamerton.recipe import load_recipe
from kamerton.rewards.discriminator import SCALES, CrossFitted, auc, scaled_losses
from kamerton.rewards.factored import Factored, normed
from kamerton.tasks import load_task
from kamerton.training import Budget
from kamerton.training.batches import make_batch

SETTINGS: dict[str, dict[str, Any]] = {
    "rate 0.003": {},
    "rate 0.001": {"rate": 1e-3},
    "rank 8": {"rank": 8},
    "penalty 0.3": {"penalty": 0.3},
}
DRAWS, POSITIONS, HELD_OUT = 8, 220, 1500


class Seen:
    """What there is at every position of the references: features, last states, tokens, the number of the example."""

    def __init__(self, args: argparse.Namespace) -> None:
        overrides = [f"task.limit.train={args.examples}", "task.limit.test=10", *args.set]
        task = load_task(load_recipe(args.recipe, overrides=overrides, data=args.data).task)
        base, method = load_base("demo"), get_method("prompt-tuning")
        options = parse_options(method, {"learning_rate": 0.05, "batch_size": 8, "tokens": 20, "validations": 2})
        with tempfile.TemporaryDirectory() as folder:
            adapted = method.fit(base, task, Budget(steps=args.steps), options, Run(Path(folder), 0))
        model, features = adapted.engine.model, Features(base.model.hf, limit=0)
        rows = [base.renderer.example(e.messages, e.answers[0]) for e in (*task.train, *task.validation)]
        read, states, tokens, owners = [], [], [], []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=base.model.dtype == torch.bfloat16):
            for i in range(0, len(rows), 8):
                part = rows[i : i + 8]
                counts = [r.target_count for r in part]
                states.append(model.target_hidden(make_batch(part)).float())
                found = features([r.tokens for r in part], [r.prompt_length - 1 for r in part])
                read += [f[:n].float() for f, n in zip(found, counts, strict=True)]
                tokens += [torch.tensor(r.tokens[r.prompt_length :][:n]) for r, n in zip(part, counts, strict=True)]
                owners += [torch.full((n,), i + k) for k, n in enumerate(counts)]
        self.features, self.states = torch.cat(read), torch.cat(states)
        self.tokens, owner = torch.cat(tokens), torch.cat(owners)
        weight = base.model.hf.get_input_embeddings().weight.detach().float()
        self.output, self.embedding = weight, normed(weight)
        learnt = (owner < len(task.train)) & (owner % 2 == 0)
        self.learnt = learnt.nonzero()[:, 0]
        generator = torch.Generator().manual_seed(0)
        rest = (~learnt).nonzero()[:, 0]
        self.held_out = rest[torch.randperm(len(rest), generator=generator)[:HELD_OUT]]

    def log_p(self, index: Tensor) -> Tensor:
        return (self.states[index] @ self.output.T).log_softmax(-1)


@torch.no_grad()
def judged(seen: Seen, judge: Factored, log_p: Tensor, fake: Tensor) -> tuple[float, float, float]:
    """AUC, scale and the gain in nats a token, on what the discriminator never saw."""
    d = judge.contexts(seen.features[seen.held_out], seen.held_out) @ judge.token(seen.embedding).T
    real = seen.tokens[seen.held_out][:, None]
    of_real, of_fake = d.gather(1, real)[:, 0], d.gather(1, fake)
    none = torch.zeros(()).expand(of_fake.numel())
    losses = scaled_losses(of_real, of_fake.flatten(), none[: len(of_real)], none)
    scale = float(SCALES[int(losses.argmin())])
    tilted = (log_p + scale * d).log_softmax(-1)
    return auc(of_real, of_fake.flatten()), scale, float((tilted.gather(1, real) - log_p.gather(1, real)).mean())


def trial(
    seen: Seen, steps: list[int], log_p: Tensor, fake: Tensor, *, rate: float = 3e-3, rank: int = 32,
    penalty: float = 0.01,
) -> list[tuple[float, float, float]]:  # fmt: skip
    """A discriminator trained for the most of `steps` steps, judged at each of them."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    judge = Factored(seen.features.shape[1], seen.embedding, rank)
    judges = CrossFitted([judge], learning_rate=rate, penalty=penalty, replay=0)
    out = []
    for step in range(1, max(steps) + 1):
        at = seen.learnt[torch.randint(len(seen.learnt), (POSITIONS,), generator=generator)]
        judges.train(lesson(seen.features[at], seen.tokens[at], seen.log_p(at), DRAWS, generator), 1, generator)
        if step in steps:
            out.append(judged(seen, judge, log_p, fake))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100, help="supervised steps of eight examples")
    parser.add_argument("--at", type=int, nargs="*", default=[20, 60, 200, 400], help="discriminator steps")
    parser.add_argument("--settings", type=json.loads, default=SETTINGS, help="by name, as JSON")
    parser.add_argument("--set", nargs="*", default=[], help="fields of the recipe, as in kamerton compare")
    args = parser.parse_args()
    seen = Seen(args)
    log_p = seen.log_p(seen.held_out)
    fake = torch.multinomial(log_p.exp(), DRAWS, replacement=True, generator=torch.Generator().manual_seed(2))
    own = -float(log_p.gather(1, seen.tokens[seen.held_out][:, None]).mean())
    print(f"{len(seen.learnt):,} positions to learn from; the model's own loss is {own:.3f} nats a token\n")
    print("| setting | steps | AUC, held out | scale | gain, nats a token |\n|---|---|---|---|---|")
    for name, setting in args.settings.items():
        for step, (area, scale, gain) in zip(args.at, trial(seen, args.at, log_p, fake, **setting), strict=True):
            print(f"| {name} | {step} | {area:.3f} | {scale:.2f} | {gain:.3f} |", flush=True)


if __name__ == "__main__":
    main()
