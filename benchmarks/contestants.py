"""One contestant of `peers.py` in a process of its own: reads jobs as JSON lines, answers each with a JSON line.

A job names a function of this file, or of one of the others', and its arguments; the answer holds the seconds of the
timed part, what was done in them, the peak of the process's resident memory during them, and what the other
contestant's answer is checked against. Loading, data preparation and warm-up are not timed.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from contestant import base, hf, measured, renderer
from kamerton.base.sources import dequantise
from kamerton.base.work import Work, flops
from kamerton.packaged import demo_gguf
from training_contestants import soft_losses, train_kamerton, train_peft, train_trl
from whole_contestants import compare_kamerton, compare_peers, grpo_kamerton, grpo_trl
from workloads import choice_questions, prompts, training_examples

NEW_TOKENS = 64


# -- generation -----------------------------------------------------------------------------------------------------


def generate_kamerton(batch: int, shared: bool, dtype: str, new: int = NEW_TOKENS) -> dict[str, Any]:
    """Greedy answers of exactly `new` tokens: no token ends one."""
    from kamerton.inference import Engine, Sampling

    endless = copy.copy(base(dtype).renderer)
    endless.end_ids = ()
    engine = Engine(base(dtype).model, endless)
    conversations = prompts(batch, shared=shared)
    # behind 64 tokens decoded alone the rough copy is made that guesses from then on
    engine.generate(conversations[:1], Sampling(max_tokens=70 if batch == 1 else 2))
    answer: dict[str, Any] = {}
    with measured(answer):
        answers = engine.generate(conversations, Sampling(max_tokens=new))
    weights = sum(p.numel() * p.element_size() for p in base(dtype).model.hf.parameters())
    tokens = [list(a.tokens) for a in answers]
    return {**answer, "units": sum(map(len, tokens)), "tokens": tokens, "bytes": weights * new}


def generate_transformers(
    batch: int, shared: bool, dtype: str, new: int = NEW_TOKENS, setting: str = "eager"
) -> dict[str, Any]:  # fmt: skip
    """transformers' `generate`, padded on the left.

    `setting`: `eager` (its own growing cache), `static` (a cache of fixed size), or `compiled` (that, and the forward
    pass through `torch.compile`).
    """
    model = hf(dtype)
    ids, seen = _padded([renderer().prompt(c) for c in prompts(batch, shared=shared)])
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    if setting != "eager":
        model.generation_config.cache_implementation = "static"
    if setting == "compiled" and not hasattr(model, "plain"):
        model.plain, model.forward = model.forward, torch.compile(model.forward, dynamic=False)

    def run(count: int, part: slice) -> Any:
        with torch.inference_mode():
            return model.generate(
                ids[part], attention_mask=seen[part], max_new_tokens=count, do_sample=False, use_cache=True
            )

    run(2 if setting == "eager" else new, slice(0, 1 if setting == "eager" else None))
    answer: dict[str, Any] = {}
    with measured(answer):
        out = run(new, slice(None))
    return {**answer, "units": batch * new, "tokens": out[:, ids.shape[1] :].tolist()}


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and their masks."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def _questions(count: int) -> list[Any]:
    examples = training_examples("gsm8k", count)
    return [e.messages for e in examples] if examples is not None else prompts(count, shared=False)


def rollouts_kamerton(questions: int, group: int, dtype: str, new: int = NEW_TOKENS) -> dict[str, Any]:
    """`group` sampled answers of exactly `new` tokens to each question."""
    from kamerton.inference import Engine, Sampling

    endless = copy.copy(base(dtype).renderer)
    endless.end_ids = ()
    engine = Engine(base(dtype).model, endless)
    asked = _questions(questions)
    engine.generate(asked[:1], Sampling(max_tokens=2, n=group, temperature=1.0))
    answer: dict[str, Any] = {}
    with measured(answer):
        answers = engine.generate(asked, Sampling(max_tokens=new, n=group, temperature=1.0))
    logprobs = [value for a in answers for value in a.logprobs]
    return {**answer, "units": len(logprobs), "logprob": sum(logprobs) / len(logprobs)}


def rollouts_transformers(questions: int, group: int, dtype: str, new: int = NEW_TOKENS) -> dict[str, Any]:
    """transformers' `generate` with `num_return_sequences`."""
    model = hf(dtype)
    ids, seen = _padded([renderer().prompt(c) for c in _questions(questions)])
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def run(count: int, part: slice) -> Any:
        with torch.inference_mode():
            return model.generate(
                ids[part], attention_mask=seen[part], max_new_tokens=count, do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, num_return_sequences=group, use_cache=True,
            )  # fmt: skip

    run(2, slice(0, 1))
    answer: dict[str, Any] = {}
    with measured(answer):
        out = run(new, slice(None))
    first = slice(0, None, group)  # one answer to each question: enough for a mean, and quick
    with torch.inference_mode():
        mask = torch.cat([seen, seen.new_ones(len(seen), new)], dim=1)
        logits = model(
            input_ids=out[first], attention_mask=mask, position_ids=mask.cumsum(-1).sub(1).clamp(min=0)
        ).logits
        said = out[first][:, -new:, None]
        logprob = logits[:, -new - 1 : -1].float().log_softmax(-1).gather(2, said).mean()
    return {**answer, "units": len(out) * new, "logprob": float(logprob)}


# -- scores of choices ----------------------------------------------------------------------------------------------


def score_kamerton(questions: int, dtype: str) -> dict[str, Any]:
    """The log-probability of every choice of every question."""
    from kamerton.inference import Engine

    _, asked, choices = choice_questions(questions)
    engine = Engine(base(dtype).model, base(dtype).renderer)
    engine.score(asked[:1], [choices[:2]])
    before = Work() + base(dtype).model.work
    answer: dict[str, Any] = {}
    with measured(answer):
        scores = engine.score(asked, [choices] * len(asked))
    used = flops(base(dtype).model.work - before, base(dtype).model.hf)
    return {**answer, "units": len(asked) * len(choices), "scores": scores, "flops": used}


def rank_kamerton(questions: int, dtype: str) -> dict[str, Any]:
    """The likeliest choice of every question."""
    from kamerton.inference import Engine

    _, asked, choices = choice_questions(questions)
    engine = Engine(base(dtype).model, base(dtype).renderer)
    engine.rank(asked[:1], [choices[:2]])
    answer: dict[str, Any] = {}
    with measured(answer):
        best = engine.rank(asked, [choices] * len(asked))
    return {**answer, "units": len(asked) * len(choices), "best": best}


@functools.cache
def _harness(dtype: str, batch: int) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dequantise(demo_gguf()))
    return HFLM(pretrained=hf(dtype), tokenizer=tokenizer, backend="causal", batch_size=batch)


def score_lm_eval(questions: int, dtype: str, batch: int) -> dict[str, Any]:
    """lm-eval's HF backend behind its tokenisation, so that it scores the very same tokens."""
    _, asked, choices = choice_questions(questions)
    harness = _harness(dtype, batch)
    requests = [(("", ""), renderer().prompt(c), renderer().answer(choice)) for c in asked for choice in choices]
    harness._loglikelihood_tokens(requests[:2], disable_tqdm=True)
    answer: dict[str, Any] = {}
    with measured(answer):
        out = harness._loglikelihood_tokens(requests, disable_tqdm=True)
    flat = [value for value, _ in out]
    scores = [flat[i : i + len(choices)] for i in range(0, len(flat), len(choices))]
    return {**answer, "units": len(requests), "scores": scores}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (
        train_kamerton, train_trl, train_peft, soft_losses, generate_kamerton, generate_transformers, rollouts_kamerton,
        rollouts_transformers, score_kamerton, rank_kamerton, score_lm_eval, grpo_kamerton, grpo_trl, compare_kamerton,
        compare_peers,
    )
}  # fmt: skip


def main() -> None:
    """Answer jobs until the input ends; whatever libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.manual_seed(0)
    for line in sys.stdin:
        job = json.loads(line)
        reply = JOBS[job.pop("job")](**job)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
