"""Published models by name: their shapes, and the parameter counts that their authors state.

`kamerton base show NAME` computes the count from the shape (on the meta device, no weights) and sets it beside the
published one; a test holds every row to within 1%. Two rows of the papers do not agree with their own shapes; each says
so in `note`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kamerton.base.presets import Shape


@dataclass(frozen=True, slots=True)
class Published:
    """A published model.

    Attributes:
        preset: its family.
        shape: its shape.
        parameters: as stated.
        source: where it is stated.
        note: why the count is not within 1% of what is stated, where it is not; else "".
    """

    preset: str
    shape: Shape
    parameters: float
    source: str
    note: str = ""


def _gpt3() -> Iterator[tuple[str, Published]]:
    source = "Brown et al. 2020, table D.1"
    for name, width, depth, heads, count in (
        ("small", 768, 12, 12, 125e6), ("medium", 1024, 24, 16, 356e6), ("large", 1536, 24, 16, 760e6),
        ("xl", 2048, 24, 16, 1.320e9), ("2.7b", 2560, 32, 32, 2.650e9), ("6.7b", 4096, 32, 32, 6.660e9),
        ("13b", 5120, 40, 40, 12.850e9), ("175b", 12288, 96, 96, 174.600e9),
    ):  # fmt: skip
        yield f"gpt3-{name}", Published("gpt3", Shape(width, depth, heads, 50257, 2048), count, source)


def _gpt2() -> Iterator[tuple[str, Published]]:
    for name, width, depth, heads, count in (
        ("-small", 768, 12, 12, 124e6), ("-medium", 1024, 24, 16, 355e6), ("-large", 1280, 36, 20, 774e6),
        ("-xl", 1600, 48, 25, 1.558e9),
    ):  # fmt: skip
        shape = Shape(width, depth, heads, 50257, 1024)
        yield f"gpt2{name}", Published("gpt2", shape, count, "openai/gpt-2, release of 2019")


def _llama() -> Iterator[tuple[str, Published]]:
    for name, width, depth, heads, inner, count in (
        ("7b", 4096, 32, 32, 11008, 6.7e9), ("13b", 5120, 40, 40, 13824, 13.0e9), ("33b", 6656, 60, 52, 17920, 32.5e9),
        ("65b", 8192, 80, 64, 22016, 65.2e9),
    ):  # fmt: skip
        shape = Shape(width, depth, heads, 32000, 2048, feed_forward=inner)
        yield f"llama-{name}", Published("llama", shape, count, "Touvron et al. 2023, table 2")
    for name, width, depth, heads, inner, count in (
        ("8b", 4096, 32, 32, 14336, 8.03e9), ("70b", 8192, 80, 64, 28672, 70.6e9),
    ):  # fmt: skip
        shape = Shape(width, depth, heads, 128256, 8192, kv_heads=8, feed_forward=inner)
        yield f"llama3-{name}", Published("llama", shape, count, "model card of Meta Llama 3")


_CLIP = (1024, 24, 16, 4096, 336, 14)

PUBLISHED: dict[str, Published] = {
    "gpt1": Published("gpt", Shape(768, 12, 12, 40478, 512), 117e6, "Radford et al. 2019, table 2, for GPT-1's size"),
    **dict(_gpt2()),
    **dict(_gpt3()),
    **dict(_llama()),
    "bert-base": Published("bert", Shape(768, 12, 12, 30522, 512), 110e6, "Devlin et al. 2019, section 3"),
    "bert-large": Published(
        "bert", Shape(1024, 24, 16, 30522, 512), 340e6, "Devlin et al. 2019, section 3",
        "the paper rounds 336 million to 340",
    ),
    "transformer-base": Published(
        "transformer", Shape(512, 6, 8, 37000, 1024), 65e6, "Vaswani et al. 2017, table 3",
        "65 million take a vocabulary of 40,700 tokens, and the 213 million of the large model one of 35,800; "
        "the paper says about 37,000",
    ),
    "transformer-big": Published(
        "transformer", Shape(1024, 6, 16, 37000, 1024), 213e6, "Vaswani et al. 2017, table 3"
    ),
    "mixtral-8x7b": Published(
        "moe", Shape(4096, 32, 32, 32000, 32768, kv_heads=8, feed_forward=14336), 46.7e9,
        "Mistral AI, Mixtral of experts, December 2023",
    ),
    "mixtral-8x22b": Published(
        "moe", Shape(6144, 56, 48, 32768, 65536, kv_heads=8, feed_forward=16384), 141e9,
        "Mistral AI, Cheaper, Better, Faster, Stronger, April 2024",
    ),
    "llava-1.5-7b": Published(
        "llava", Shape(4096, 32, 32, 32064, 4096, feed_forward=11008, vision=_CLIP), 7.06e9,
        "model card of llava-hf/llava-1.5-7b-hf",
    ),
}  # fmt: skip
"""Every published model by its name."""
