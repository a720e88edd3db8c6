"""The table and the plot of `peers.py`'s results."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from parts import OURS


def _spread(values: list[float], digits: int = 3) -> str:
    numbers = (median(values), min(values), max(values))
    middle, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.{digits}g}" for v in numbers)
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def ratios(result: dict[str, Any], name: str, key: str) -> list[float]:
    """A contestant's numbers over the peer's, turn by turn."""
    mine, theirs = (result["contestants"][who][key] for who in (name, result["peer"]))
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each of our contestants."""
    lines = [
        "| measurement | unit/s, Kamerton | unit/s, peer | peer | ratio | target | ratio, processor time | "
        "peak MB, Kamerton | peak MB, peer | memory | share of the machine | agreement |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        theirs = r["contestants"][r["peer"]]
        for name, mine in r["contestants"].items():
            if name == r["peer"]:
                continue
            label, peer = (
                r["name"] + name.removeprefix(OURS),
                f"{r['peer']} {own_settings(r['jobs'][r['peer']])}".strip(),
            )
            lines.append(
                f"| {label} | {_spread(mine['rate'])} {r['unit']} | {_spread(theirs['rate'])} | {peer} | "
                f"**{_spread(ratios(r, name, 'rate'))}** | {r.get('target') or ''} | "
                f"{_spread(ratios(r, name, 'cpu_rate'))} | {median(mine['peak']):,.0f} | "
                f"{median(theirs['peak']):,.0f} | {median(ratios(r, name, 'peak')):.2f} | {_share(mine, r)} | "
                f"{'; '.join(r['check']) if name == OURS else ''} |"
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def _share(turns: dict[str, Any], result: dict[str, Any]) -> str:
    """What of the machine's best a contestant used: products, or reading memory once for each token."""
    said = []
    for key, words in (
        ("flops", "of the matrix peak"),
        ("bytes", "of the bandwidth, were all weights read for each token"),
    ):
        if turns.get(key) and result.get("most"):
            said.append(f"{median(turns[key]) / result['most'][key]:.0%} {words}")
    return ", ".join(said)


def plot(results: list[dict[str, Any]]) -> str:
    """A bar for each part: how many times as fast as the peer, by the clock, with the range and the target."""
    left, right, high = 240, 760, 26
    top = max(max(ratios(r, OURS, "rate")) for r in results) * 1.05
    place = lambda value: left + (right - left) * math.log(max(value, 0.5) / 0.5) / math.log(top / 0.5)  # noqa: E731
    end = high * len(results) + 28
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {end + 32}" font-family="sans-serif" '
             'font-size="12"><rect width="100%" height="100%" fill="white"/>']  # fmt: skip
    for value in (0.5, 1, 2, 4, 8, 16, 32, 64):
        if value <= top:
            x = place(value)
            parts.append(f'<path d="M{x:.1f} 20V{end}" stroke="{"#444" if value == 1 else "#ddd"}"/>'
                         f'<text x="{x:.1f}" y="14" text-anchor="middle">{value:g}×</text>')  # fmt: skip
    for i, r in enumerate(results):
        y, values = 28 + high * i, ratios(r, OURS, "rate")
        middle, target = median(values), r.get("target")
        colour = "#2a6f4e" if target is None or middle >= target else "#b5651d"
        x0, x1 = sorted((place(1), place(middle)))
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{r["name"]}</text>',
            f'<rect x="{x0:.1f}" y="{y}" width="{max(x1 - x0, 1):.1f}" height="17" fill="{colour}"/>',
            f'<path d="M{place(min(values)):.1f} {y + 8.5}H{place(max(values)):.1f}" stroke="black"/>',
            f'<text x="{right + 8}" y="{y + 13}">{middle:.2f}×</text>',
        ]
        if target is not None:
            parts.append(f'<path d="M{place(target):.1f} {y - 2}v21" stroke="#c00" stroke-width="2"/>')
    said = "times as fast as the peer, by the clock (logarithmic); black: range of the turns; red: target"
    return "".join([*parts, f'<text x="{left}" y="{end + 20}">{said}</text></svg>'])


def own_settings(job: dict[str, Any]) -> str:
    """The settings by which a contestant's jobs differ."""
    return " ".join(f"{k}={v}" for k, v in job.items() if k in ("setting", "batch"))
