"""What a method costs, in a few words that hold for any base."""

from __future__ import annotations

from kamerton.methods.method import Method


def cost_line(method: Method) -> str:
    """Training and answering cost relative to the base's forward pass, which takes 2 FLOPs a weight and token."""
    own = getattr(method, "cost", "")
    return own or {
        "nothing": "no training; its prompt is read with every question",
        "all weights": "forward and two backward products a token; 16 bytes a weight while training",
    }.get(method.trains, "forward and one backward product a token; optimiser for the trained numbers only")
