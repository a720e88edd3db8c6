"""A race: the cells of a comparison in rounds, and after each round what is clearly behind is stopped.

With the first seed every method trains to some shares of its schedule (a pause leaves no trace in what comes of it) and
then to its end; with further seeds to its end. At each of these points it answers the validation questions, and a look
(looks.py) decides who goes on; where answering is dear beside training, the looks before the end are left out. What
survives the look at the end of a seed finishes that cell: only then, and only
once, does it read the test set. A stopped method gets no further training and no further seeds; the verdict ranks the
others.

Everything is decided by stored answers, so a race that is killed and started again ends with the same results.
Successive halving (Jamieson & Talwalkar 2016) is the other way to do this; it drops a fixed part of the methods whether
or not they are behind, which a comparison that wants to say "not told apart" must not do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from kamerton.comparison.looks import Standing, look
from kamerton.comparison.store import Cell, Store
from kamerton.comparison.verdict import Stopped
from kamerton.errors import KamertonError
from kamerton.evaluation.metrics import get_metric
from kamerton.files import write_json
from kamerton.recipe import RaceSpec
from kamerton.tasks.example import Task

Run = Callable[[Sequence[tuple[Cell, float | None]]], None]


@dataclass(frozen=True, slots=True)
class Stop(Stopped):
    """A method that the race stopped, with `alpha`, what its p had to be below."""

    alpha: float


def check_race(task: Task) -> None:
    """Refuse a task on which nothing can be raced."""
    if not task.validation:
        raise KamertonError(
            "a race is decided on validation examples, and there are none", where=task.name,
            mend="give a validation split, or run without --race",
        )  # fmt: skip


class Race:
    """The rounds of one comparison.

    Args:
        store: holds what is known.
        cells: all cells, labels in the recipe's order.
        task: has the validation questions; its first metric decides.
        spec: how to race.
        run: does jobs: cells to finish, or, with a share, to train so far and answer.
        tell: told a line about each decision; `dropped`: about each cell that will not be run.
    """

    def __init__(
        self, store: Store, cells: Sequence[Cell], task: Task, spec: RaceSpec, run: Run,
        tell: Callable[[str], None], dropped: Callable[[Cell], None],
    ) -> None:  # fmt: skip
        self.store, self.task, self.spec, self._run, self._tell, self._dropped = store, task, spec, run, tell, dropped
        self.cells = {(c.label, c.seed): c for c in cells}
        self.seeds = list(dict.fromkeys(c.seed for c in cells))
        self.alive = list(dict.fromkeys(c.label for c in cells))
        self.metric = get_metric(task.metrics[0], task.validation)
        self.stops: list[Stop] = []
        self.unlooked: bool | None = None  # whether looks during training are left out; None: not known yet
        # the last seed is not followed by a look: nothing is left to save
        ends = max(0, len(self.seeds) - 1)
        self.alpha = spec.alpha / max(1, len(spec.shares) + ends)

    def run(self) -> None:
        """All rounds, to the end."""
        for place, seed in enumerate(self.seeds):
            last = place == len(self.seeds) - 1
            for share in (*(self.spec.shares if place == 0 else ()), *(() if last else (1.0,))):
                if len(self.alive) > 1 and not (share < 1 and self._too_dear(seed, share)):
                    self._round(seed, share)
            mine = [self.cells[label, seed] for label in self.alive]
            self._run([(c, None) for c in mine if c.same_as is None and not self.store.finished(c)])
            for cell in mine:
                if cell.same_as is not None and not self.store.finished(cell):
                    self.store.copy_cell(cell)
            self._write()

    def _too_dear(self, seed: int, share: float) -> bool:
        """Whether looks before the end of training are left out: they would cost more than they are likely to save.

        Measured with the first method that trains, which goes to the first share before the others do.
        """
        if self.unlooked is None:
            self.unlooked = False
            for cell in (self.cells[label, seed] for label in self.alive):
                if cell.same_as is not None:
                    continue
                if self.store.scouted(cell, share) is None:
                    self._run([(cell, share)])
                found = self.store.scouted(cell, share)
                if found is not None and not found["finished"]:
                    part = found["flops"]["answer"] / found["flops"]["whole_fit"]
                    self.unlooked = part > self.spec.look_cost
                    if self.unlooked:
                        self._tell(
                            f"no looks at {', '.join(f'{s:.0%}' for s in self.spec.shares)} of training: to answer "
                            f"{len(self.task.validation)} validation questions takes {part:.0%} of what {cell.label} "
                            f"takes to train (look_cost: {self.spec.look_cost:g})"
                        )
                    break
        return self.unlooked

    def _round(self, seed: int, share: float) -> None:
        """Everybody that is in the race to one point, and a look."""
        cells = [self.cells[label, seed] for label in self.alive]
        own = [c for c in cells if c.same_as is None]
        self._run([(c, share) for c in own if self.store.scouted(c, share) is None])
        failed = [c.label for c in own if self.store.scouted(c, share) is None]
        self.alive = [label for label in self.alive if label not in failed]
        behind = {b.label: b for b in look(
            [self._standing(label, seed, share) for label in self.alive], self.metric, alpha=self.alpha,
            seed_deviation=self.spec.seed_deviation, curve_deviation=self.spec.curve_deviation * (1 - share),
        )}  # fmt: skip
        for b in behind.values():
            stop = Stop(
                b.label, b.leader, seed, share, self.seeds.index(seed) + 1, b.value, b.leader_value,
                len(self.task.validation), b.p, self.alpha,
            )  # fmt: skip
            self.stops.append(stop)
            self._tell(
                f"stopped: {b.label} after {share:.0%} of seed {seed}: {self.metric.name} {b.value:.3f} on "
                f"{stop.examples} validation questions, {b.leader} {b.leader_value:.3f} (p {b.p:.2g})"
            )
            for cell in self.cells.values():
                if cell.label == b.label and cell.same_as is None and not self.store.finished(cell):
                    self._dropped(cell)
        self.alive = [label for label in self.alive if label not in behind]
        self._write()

    def _standing(self, label: str, seed: int, share: float) -> Standing:
        """What is known of a method: with earlier seeds at their end, with this one at the share."""
        scores, training = {}, False
        for other in self.seeds[: self.seeds.index(seed) + 1]:
            cell = self.cells[label, other]
            if cell.same_as is not None:
                cell = self.cells[label, cell.same_as]
            found = self.store.scouted(cell, share if other == seed else 1.0)
            assert found is not None, (label, other)
            scores[other] = np.array(found["statistics"], dtype=np.float64)
            training = training or not found["finished"]
        seeded = len(self.seeds) == 1 or self.cells[label, self.seeds[1]].same_as is None
        return Standing(label, scores, training, seeded)

    # -- what it took -------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """`race.json`: settings, what was stopped, and the compute that was spent and saved."""
        write_json(self.store.folder / "race.json", {
            "settings": self.spec.model_dump(mode="json"), "alpha_each_look": self.alpha,
            "looks_in_training": not self.unlooked,
            "metric": self.metric.name, "stopped": [asdict(stop) for stop in self.stops], "flops": self._flops(),
        })  # fmt: skip

    def _flops(self) -> dict[str, float]:
        """Compute of the race, and about what the full comparison takes (a paused fit's schedule continued)."""
        spent, full, points = 0.0, 0.0, (*self.spec.shares, 1.0)
        ask = len(self.task.test) / len(self.task.validation)
        labels = list(dict.fromkeys(label for label, _ in self.cells))
        for label in labels:
            own = [c for (name, _), c in self.cells.items() if name == label and c.same_as is None]
            whole = []
            for cell in own:
                scouted = [s for p in points if (s := self.store.scouted(cell, p)) is not None]
                spent += sum(s["flops"]["answer"] for s in scouted)
                record = self.store.record(cell)
                if self.store.finished(cell) and record is not None:
                    whole.append(record["flops"]["fit"] + record["flops"]["evaluate"])
                    spent += whole[-1]
                elif scouted:
                    last = scouted[-1]["flops"]
                    spent += last["fit"]
                    whole.append(last["whole_fit"] + ask * last["answer"])
            full += len(own) * sum(whole) / len(whole) if whole else 0.0
        return {"spent": spent, "full": full}
