"""Counting n-grams beside nltk.lm: the same text, the same words, the same orders, in turns.

Both get the sentences as lists of words and end with counts of orders 1 to N; what reading the file takes is in both.
Before the clock starts the counts are compared, number for number.

Run: `python benchmarks/ngrams.py FILE` (`--order 3`, `--turns 5`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from kamerton.text.ngrams import open_units
from kamerton.text.ngrams.counts import Counts, count


def ours(file: Path, units: Any, order: int) -> list[Counts]:
    """Kamerton's counts."""
    return count([file], units, order)


def peers(file: Path, units: Any, order: int) -> Any:
    """nltk's counter, on padded sentences as its own tutorial has them."""
    from nltk.lm import NgramCounter
    from nltk.util import everygrams

    counter = NgramCounter()
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            counter.update([everygrams(["<s>", *units.split(line), "</s>"], max_len=order)])
    return counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    units = open_units("words", [args.file])
    found, theirs = ours(args.file, units, args.order), peers(args.file, units, args.order)
    for n, one in enumerate(found, start=1):
        named = [tuple(units.names[u] for u in gram) for gram in one.grams]
        for gram, number in zip(named, one.counts, strict=True):
            peer = theirs[gram[0]] if n == 1 else theirs[list(gram[:-1])][gram[-1]]
            assert peer == number, (gram, peer, number)
    sizes = ", ".join(f"{len(one.counts):,}" for one in found)
    print(f"orders 1 to {args.order}: {sizes} different n-grams, all counts equal")
    ratios = []
    for turn in range(args.turns):
        seconds = []
        for run in (ours, peers) if turn % 2 else (peers, ours):
            began = time.perf_counter()
            run(args.file, units, args.order)
            seconds.append(time.perf_counter() - began)
        own, peer = seconds if turn % 2 else reversed(seconds)
        ratios.append(peer / own)
        print(f"nltk {peer:.2f} s, Kamerton {own:.2f} s, {ratios[-1]:.1f} times")
    print(f"median {median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
