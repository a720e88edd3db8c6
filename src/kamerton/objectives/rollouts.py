"""Rollouts: answers sampled from the model as it is, and their advantages.

One dense reward a token, a discounted reward-to-go, and as a baseline the mean over the group of answers to the same
query (group-relative as in GRPO, Shao et al. 2024, arXiv 2402.03300, at each position): no critic. Advantages are
divided by their spread over all tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kamerton import processes
from kamerton.base.model import LanguageModel
from kamerton.inference import Engine, Sampling
from kamerton.rendering import Rendered, Renderer
from kamerton.tasks.example import Conversation


@dataclass(frozen=True)
class Rollout:
    """A sampled answer.

    Attributes:
        query: the number of its query.
        rendered: prompt and answer, loss on the answer.
        text: of the answer; `ended`: whether it ended by itself, inside the limit.
    """

    query: int
    rendered: Rendered
    text: str
    ended: bool

    @property
    def said(self) -> list[int]:
        """The answer's tokens, its end token included."""
        return list(self.rendered.tokens[self.rendered.prompt_length :])


def sample(
    model: LanguageModel, renderer: Renderer, queries: Sequence[tuple[int, Conversation]], sampling: Sampling
) -> list[Rollout]:
    """`sampling.n` answers to each query; a prompt goes through the model once for all of its answers.

    Queries are dealt out between processes: an answer's random numbers belong to its prompt, not to its place.
    """
    engine = Engine(model, renderer)

    def ask(own: Sequence[tuple[int, Conversation]]) -> list[list[Rollout]]:
        answers = engine.generate([messages for _, messages in own], sampling)
        out: list[list[Rollout]] = [[] for _ in own]
        for i, answer in enumerate(answers):
            number, messages = own[i // sampling.n]
            prompt = renderer.prompt(messages)
            tokens = (*prompt, *answer.tokens)
            weights = (*([0.0] * len(prompt)), *([1.0] * len(answer.tokens)))
            said = Rollout(number, Rendered(tokens, weights), answer.text, answer.finish == "stop")
            out[i // sampling.n].append(said)
        return out

    return [rollout for answers in processes.deal(queries, ask) for rollout in answers]


def to_go(rewards: np.ndarray, discount: float) -> np.ndarray:
    """(T,) rewards → (T,) Σ_k discount^k · reward of k tokens later."""
    out, later = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        later = rewards[t] + discount * later
        out[t] = later
    return out


def advantages(rewards: Sequence[np.ndarray], groups: Sequence[int], discount: float) -> list[np.ndarray]:
    """Group-relative advantages of every token.

    Args:
        rewards: (T_i,) for each answer.
        groups: which query each answer is to.
        discount: of the reward-to-go.

    Returns:
        For each answer (T_i,), mean about 0 at each position of a group, spread 1 over all tokens.
    """
    returns = [to_go(r, discount) for r in rewards]
    longest = max(map(len, returns), default=0)
    out = []
    for r, group in zip(returns, groups, strict=True):
        peers = [p for p, g in zip(returns, groups, strict=True) if g == group]
        # an answer that has ended has no reward to come
        base = np.array([np.mean([p[t] if t < len(p) else 0.0 for p in peers]) for t in range(min(longest, len(r)))])
        out.append(r - base)
    spread = float(np.concatenate(out).std()) if out else 0.0
    return [a / spread for a in out] if spread > 1e-8 else out
