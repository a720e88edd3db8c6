"""Made-up documents for tests of corpora: words of no language, in sentences, so that nothing is copied from anywhere."""

from __future__ import annotations

import random
from pathlib import Path

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


def vocabulary(count: int, rng: random.Random) -> list[str]:
    """Different words of one to three syllables, the first ones short, as in languages."""
    pairs = [a + b for a in SYLLABLES for b in SYLLABLES]
    longer = [pair + rng.choice(SYLLABLES) for pair in pairs]
    rng.shuffle(pairs)
    return [*SYLLABLES, *pairs[: count // 3], *longer][:count]


def document(words: list[str], length: int, rng: random.Random) -> list[str]:
    """Words drawn by Zipf's law."""
    weights = [1 / (rank + 3) for rank in range(len(words))]
    return rng.choices(words, weights, k=length)


def edited(text: list[str], share: float, words: list[str], rng: random.Random) -> list[str]:
    """Each word is, with this probability, replaced (60%), removed (20%), or followed by another one (20%)."""
    out: list[str] = []
    for word in text:
        kind = rng.random() if rng.random() < share else None
        if kind is None or kind >= 0.8:
            out.append(word)
        if kind is not None and not 0.6 <= kind < 0.8:
            out.append(rng.choice(words))
    return out


def sentences(words: list[str]) -> str:
    """Words as sentences of twelve, three to a line."""
    parts = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
    return "\n".join(" ".join(parts[i : i + 3]) for i in range(0, len(parts), 3))


def page(body: str) -> str:
    """A web page with a menu and a footer around paragraphs."""
    paragraphs = "".join(f"<p>{line}</p>" for line in body.split("\n"))
    return (
        "<!DOCTYPE html><html><head><title>Test</title></head><body><nav><a href='/'>Menu entry</a></nav>"
        f"<article>{paragraphs}</article><footer>Footer words</footer></body></html>"
    )


def write(path: Path, content: str | bytes) -> Path:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
