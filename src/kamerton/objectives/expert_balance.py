"""The load-balancing loss of a mixture of experts, and how evenly tokens are spread over them.

For each layer, with E experts of which k are taken for a token: E · Σ_e f_e · p_e, where f_e is how many of its tokens'
choices fall on expert e (Σ f_e = k) and p_e the mean probability that the router gives it (Fedus et al. 2022, arXiv
2101.03961, as Mixtral counts it); k where all are used alike. Without it a few experts take all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def routers(hf: Any) -> list[nn.Module]:
    """The modules that choose experts, lowest layer first: transformers' routers, which give their logits first."""
    return [m for m in hf.modules() if hasattr(m, "top_k") and hasattr(m, "num_experts") and hasattr(m, "weight")]


class Balance:
    """Watches the routers of a model.

    Args:
        hf: a transformers model with routed experts.
    """

    def __init__(self, hf: Any) -> None:
        self._routers = routers(hf)
        self._top_k = hf.config.get_text_config().num_experts_per_tok

    @contextmanager
    def watch(self) -> Iterator[list[Tensor]]:
        """(T, E) logits of each layer's router for the passes inside, in the list that this gives."""
        seen: list[Tensor] = []
        hooks = [r.register_forward_hook(lambda _module, _given, out: seen.append(out[0])) for r in self._routers]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, logits: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The mean loss over layers, and metrics.

        Returns:
            () the loss with gradient; `balance_loss`, and over all layers the shares of the choices that fall on the
            busiest and on the idlest expert (1/E each where all are used alike).
        """
        layers, busiest, idlest = [], [], []
        for each in logits:
            chances = each.float().softmax(-1)  # (T, E)
            chosen = torch.zeros_like(chances).scatter_(1, chances.topk(self._top_k, dim=-1).indices, 1.0)
            use = chosen.mean(0)
            layers.append(chances.shape[1] * (use * chances.mean(0)).sum())
            busiest.append(float(use.max()) / self._top_k)
            idlest.append(float(use.min()) / self._top_k)
        value = torch.stack(layers).mean()
        return value, {"balance_loss": float(value.detach()), "busiest_expert": max(busiest),
                       "idlest_expert": min(idlest)}  # fmt: skip
