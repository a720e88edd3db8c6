"""How much of the way to the truth a discriminator knows, on the small language of `known_language.py`.

A soft prompt is trained with supervision, on a language whose parts differ by query, which it cannot say exactly. Then
discriminators alone are trained on half of the references against the tokens that the model puts in their place. An
ideal one has d = log p/π, and the model tilted by it, π e^d, is the truth. Printed is the share of KL(p ‖ π) a token
that the tilt by the learnt d takes away, on the other half of the references, and the AUC there; 100% is the truth,
below 0% the tilt is worse than none.

Run: `python benchmarks/discriminators.py` (two minutes).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kamerton.base import Base
from kamerton.inference.features import Features
from kamerton.inference.sampling import draws
from kamerton.rewards.discriminator import CrossFitted, auc
from kamerton.rewards.factored import Factored, normed
from kamerton.rewards.pairs import Pairs, Tokens
from kamerton.training.batches import make_batch
from known_language import END, LETTERS, LONGEST, QUERIES, Language, examples, fitted, pretrained, task


def true_logs(base: Base, language: Language, row: tuple[int, ...], start: int) -> list[np.ndarray]:
    """For each position of an answer the log-probabilities (V,) of the next token in the language."""
    words = base.renderer.tokenizer.convert_ids_to_tokens(list(row))
    query = next(int(w[1:]) for w in words[:start] if w.startswith("q"))
    ids, end = base.renderer.tokenizer.convert_tokens_to_ids(list(LETTERS)), row[-1]
    out = []
    for i in range(len(row) - start):
        p = np.full(len(base.renderer.tokenizer), 1e-9)
        said = [LETTERS.index(w) for w in words[start : start + i]]
        if len(said) == LONGEST:
            p[end] = 1.0
        else:
            rest = 1.0 if not said else 1 - END
            p[ids] = rest * (language.then[query, said[-1]] if said else language.first[query])
            p[end] = 1 - rest
        out.append(np.log(np.maximum(p, 1e-9)))
    return out


@torch.no_grad()
def seen(base: Base, references: int, seed: int) -> dict[str, Tensor]:
    """What there is at each position of the references: features, token, both log-probabilities, half."""
    language = Language.drawn(seed, 1.0)
    what = task(examples(language, references, 500 + seed))
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        tuned = fitted(base, "prompt-tuning", what, 300, Path(folder), seed, learning_rate=0.05, batch_size=32,
                       tokens=4, init="vocabulary")  # fmt: skip
    rows = [base.renderer.example(e.messages, e.answers[0]) for e in what.train]
    features = Features(base.model.hf)([r.tokens for r in rows], [r.prompt_length - 1 for r in rows], alone=True)
    columns: dict[str, list[Any]] = {"features": [], "real": [], "log_p": [], "log_pi": [], "half": []}
    for i, (f, row) in enumerate(zip(features, rows, strict=True)):
        targets = row.tokens[row.prompt_length :]
        columns["features"].append(f[: len(targets)])
        columns["real"].append(torch.tensor(targets))
        columns["log_p"].append(torch.tensor(np.stack(true_logs(base, language, row.tokens, row.prompt_length))))
        model = tuned.tuned.model
        hidden = model.target_hidden(make_batch([row]))
        columns["log_pi"].append(model.output(hidden).float().log_softmax(-1))
        columns["half"].append(torch.full((len(targets),), i // QUERIES % 2))
    return {name: torch.cat(parts).float() if name == "log_p" else torch.cat(parts) for name, parts in columns.items()}


def lesson(features: Tensor, real: Tensor, log_pi: Tensor, count: int, generator: torch.Generator) -> Pairs:
    """References' tokens at (N,) positions beside `count` that the model puts in their place at each."""
    noise = torch.rand(len(real), count, generator=generator, dtype=torch.float64).numpy()
    zero, many = torch.zeros(len(real)), torch.zeros(len(real) * count)
    own = Tokens(features, real, zero, torch.arange(len(real)), zero)
    fake = draws(log_pi, noise).flatten()
    return Pairs(own, Tokens(features.repeat_interleave(count, 0), fake, many, torch.arange(len(many)), many))


def closed(found: dict[str, Tensor], judges: CrossFitted) -> tuple[float, float]:
    """Share of KL(p ‖ π) that the tilt takes away on what the first discriminator never saw, and its AUC there."""
    other = found["half"] == 1
    judge, log_pi, log_p = judges.judges[0], found["log_pi"][other], found["log_p"][other]
    rows = torch.arange(int(other.sum()))
    with torch.no_grad():
        d = judge.of_vocabulary(judge.contexts(found["features"][other], rows))
    kl = [float((log_p.exp() * (log_p - q)).sum(-1).mean()) for q in (log_pi, (log_pi + d).log_softmax(-1))]
    fake = draws(log_pi, np.random.default_rng(0).random((len(rows), 1)))[:, 0]
    scores = [d.gather(1, t[:, None])[:, 0] for t in (found["real"][other], fake)]
    return 1 - kl[1] / kl[0], auc(*scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=96, help="positions in a step")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    marks = (20, 60, 200, 600)
    with tempfile.TemporaryDirectory() as folder:
        base = pretrained(Path(folder), 0)
        sets = [seen(base, args.references, seed) for seed in range(args.seeds)]
    print("| draws | learning rate | " + " | ".join(f"{m} steps: KL taken away, AUC" for m in marks) + " |")
    print("|---" * (2 + len(marks)) + "|")
    for count in (1, 8):
        for rate in (1e-3, 3e-3, 1e-2):
            cells: list[list[tuple[float, float]]] = [[] for _ in marks]
            for seed, found in enumerate(sets):
                torch.manual_seed(seed)
                embedding = normed(base.model.hf.get_input_embeddings().weight.detach())
                judges = CrossFitted([Factored(found["features"].shape[1], embedding, 8)], learning_rate=rate, replay=0)
                generator = torch.Generator().manual_seed(seed)
                mine = torch.where(found["half"] == 0)[0]
                for step in range(1, marks[-1] + 1):
                    at = mine[torch.randint(len(mine), (args.batch,), generator=generator)]
                    pairs = lesson(found["features"][at], found["real"][at], found["log_pi"][at], count, generator)
                    judges.train(pairs, 1, generator)
                    if step in marks:
                        cells[marks.index(step)].append(closed(found, judges))
            shown = [f"{100 * np.mean([c for c, _ in x]):.0f}%, {np.mean([a for _, a in x]):.2f}" for x in cells]
            print(f"| {count} | {rate:g} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
