"""A plan for people: what each method takes, and all of them."""

from __future__ import annotations

import math

from kamerton.comparison.planning.plan import Cost, Plan
from kamerton.comparison.units import duration, quantity

COLUMNS = ("method", "cells", "FLOPs, fit", "FLOPs, evaluate", "time, fit", "time, evaluate", "peak memory", "devices")


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """A row a method, each in the order of `COLUMNS`; FLOPs and time are of one cell."""
    return [_row(cost) for cost in plan.costs]


def _row(c: Cost) -> tuple[str, ...]:
    if c.error:
        return (c.label, str(c.cells), *("–",) * (len(COLUMNS) - 2))
    return (
        c.label, str(c.cells), quantity(c.flops["fit"]), quantity(c.flops["evaluate"]), duration(c.seconds["fit"]),
        duration(c.seconds["evaluate"]), gigabytes(c.memory), str(c.devices),
    )  # fmt: skip


def gigabytes(count: float) -> str:
    """Bytes in GB of 10⁹."""
    return f"{count / 1e9:,.1f} GB"


def sentences(plan: Plan) -> list[str]:
    """The totals, what computes, and what was assumed."""
    d = plan.device
    rate = f"{quantity(d.peak, 'FLOP/s')} at its peak, {d.efficiency:.0%} of it used, {quantity(d.bandwidth, 'B/s')}"
    most = max((c for c in plan.costs if not c.error), key=lambda c: c.memory, default=None)
    lines = [
        f"{plan.model}, {quantity(plan.parameters)} parameters, {plan.dtype}; {d.name}: {rate}, {gigabytes(d.memory)}",
        f"all cells: {quantity(plan.flops)} FLOPs, {duration(plan.seconds)} of one such device",
    ]
    if most is not None:
        parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in most.parts.items() if n > 0.005 * most.memory)
        lines.append(f"most memory: {most.label}, {gigabytes(most.memory)}: {parts}")
    if any(c.devices > 1 for c in plan.costs):
        lines.append(
            "where one device is too small its memory is divided evenly; exchange between devices is not counted"
        )
    lines += plan.notes
    lines += [f"{c.label} cannot be planned: {c.error}" for c in plan.costs if c.error]
    return lines


def markdown(plan: Plan) -> str:
    """The table for a page."""
    head = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    hours = math.fsum(c.cells * math.fsum(c.seconds.values()) for c in plan.costs)
    total = [f"| all | {sum(c.cells for c in plan.costs)} | {quantity(plan.flops)} | | {duration(hours)} | | | |"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows(plan)), *total]) + "\n"
