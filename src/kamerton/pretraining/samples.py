"""What a model writes while it trains: continuations of the recipe's prompts at every validation, kept in a file.

Drawn with transformers' own `generate` from a generator of their own, so that training goes on as if nobody had looked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kamerton.base.model import LanguageModel
from kamerton.files import read_jsonl, write_jsonl
from kamerton.pretraining.models import Started
from kamerton.recipe_pretrain import SamplesSpec

Look = Callable[[int, LanguageModel], None]


@torch.no_grad()
def continuations(hf: Any, started: Started, spec: SamplesSpec, seed: int) -> list[str]:
    """One continuation of each prompt; an empty prompt stands for the start of a document."""
    out = []
    # a transformer has no positions beyond its context, a recurrent model goes on without end
    most = getattr(hf.config, "max_position_embeddings", None)
    for n, prompt in enumerate(spec.prompts):
        ids = [started.end, *started.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        room = spec.tokens if most is None else min(spec.tokens, most - len(ids))
        if most is not None and room < 1:
            ids, room = ids[-(most // 2) :], min(spec.tokens, most - most // 2)
        given = torch.tensor([ids], device=hf.device)
        how: dict[str, Any] = {"do_sample": spec.temperature > 0}
        if spec.temperature > 0:
            how |= {"temperature": spec.temperature, "top_k": spec.top_k or 0}
        with torch.random.fork_rng():
            torch.manual_seed(seed + n)
            made = hf.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=room, pad_token_id=started.end, **how
            )
        out.append(started.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    return out


def looker(path: Path, make: Callable[[Any], Sequence[dict[str, str]]]) -> Look:
    """A look at the model: what `make` gives for it is kept in a file with the step, in place of an earlier run's.

    Args:
        path: a file of JSON lines.
        make: called with the transformers model.
    """

    def look(step: int, model: LanguageModel) -> None:
        kept = [row for row in read_jsonl(path) if row["step"] < step] if path.is_file() else []
        write_jsonl(path, [*kept, *({"step": step, **row} for row in make(model.hf))])

    return look
