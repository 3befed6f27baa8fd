"""A table refined for its last state: Gauss-Newton on the distance to a teacher's samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...eval.progress import Progress, silent
from ...samplers import State, Tableau, advance, initial, sample
from ...samplers.blend import Coordinates, coordinates, mixed, with_coordinates
from ...samplers.fit import Free, Trajectories, is_free, solved
from .objective import SQUARES, Compared, Objective, Sets, ends, over_sets

What = Literal["weights", "times", "labels"]
# Steps of the differences: of a coefficient, and of a time relative to the schedule's length.
STEP, TIME_STEP = 1e-3, 2e-3
# The damping, relative to the diagonal, to begin with and at least.
DAMPING, LEAST = 1e-3, 1e-6
TRIES = 6
# Steps in a row that may be no better by what judges.
PATIENCE = 2


@dataclass(frozen=True)
class Knob:
    """A number that can be added to a table.

    To carry[row] (column -1) or weights[row, column], or to the time or the label of node `row`.
    What a `balanced` one adds to a weight it takes from weights[row, row].
    """

    kind: What
    row: int
    column: int = 0
    balanced: bool = False


def knobs(table: Tableau, what: Sequence[What], free: Free = "inner") -> list[Knob]:
    """All that can be changed in what `what` names; constant x0 stays exact in rows not `free`."""
    rows = range(table.grid.nfe)
    found: list[Knob] = []
    for n in rows if "weights" in what else ():
        if is_free(n, table.grid.nfe, free):
            found += [Knob("weights", n, k) for k in range(-1, n + 1)]
        else:
            found += [Knob("weights", n, k, balanced=True) for k in range(n)]
    found += [Knob("times", n) for n in rows if "times" in what]
    return found + [Knob("labels", n) for n in rows if "labels" in what]


def turned(table: Tableau, turns: Sequence[tuple[Knob, float]]) -> Tableau:
    """The table with numbers added to some of its own; ValueError where times cross.

    Where a node moves, rows keep how far they are from what constant x0 asks of them.
    """
    time, label, carry, weights = (part.copy() for part in coordinates(table))
    for knob, turn in turns:
        if knob.kind == "times":
            time[knob.row] += turn
        elif knob.kind == "labels":
            label[knob.row] += turn
        elif knob.column < 0:
            carry[knob.row] += turn
        else:
            weights[knob.row, knob.column] += turn
            weights[knob.row, knob.row] -= turn if knob.balanced else 0.0
    # The noisiest time is where a node that would go further stays.
    time = np.minimum(time, table.grid.require_schedule().t_max)
    return with_coordinates(table, Coordinates(time, label, carry, weights))


@dataclass(frozen=True)
class Refinement:
    """Where a refinement is after `step` steps, as JSON values, and what it needs to go on.

    `best` have the loss `judged` on what judges; the last `idle` steps were none better.
    """

    step: int
    tables: list[dict[str, Any]]
    best: list[dict[str, Any]]
    judged: float
    damping: float
    idle: int


def forgotten(refinement: Refinement) -> None:
    """Keep nothing."""


def refine(
    batches: Sequence[Trajectories],
    tables: Sequence[Tableau],
    *,
    what: Sequence[What] = ("weights", "times"),
    steps: int = 6,
    free: Free = "inner",
    objective: Objective = SQUARES,
    held_out: Sequence[Trajectories] = (),
    at_once: int | None = None,
    begun: Refinement | None = None,
    keep: Callable[[Refinement], None] = forgotten,
    progress: Progress = silent,
) -> list[Tableau]:
    """The tables whose samples end nearest to a teacher's, by an objective; no gradients.

    As many as the batches have shares, which mix them; usually one. Levenberg-Marquardt: the
    derivative of the last state with respect to every number of a table is a difference of two runs
    from the step on where they part, so that the numbers of row n cost N - 1 - n evaluations each
    and those of the last row none. A sample gives as many equations as it has pixels: a few hundred
    samples determine dozens of numbers, where a descent by gradients takes thousands of runs. A
    step is derived from `at_once` of the batches in turn (None: all), but for how far the means of
    sets are off, which is known of all, and has to lower the loss of all. What is best on
    `held_out` (or else on `batches`) is returned. `free` as in `fit`. `keep` is given every step,
    and a refinement `begun` before goes on as if it had not stopped.

    Raises ValueError for a table in another basis than x0, a stochastic one, or one whose grid
    knows no schedule.
    """
    for table in tables:
        if table.basis != "x0" or table.stochastic:
            raise ValueError(f"{table!r}: only deterministic tables in x0 can be refined")
    judges = held_out or batches

    def told(batches: Sequence[Trajectories], tables: Sequence[Tableau]) -> float:
        loss = objective.loss(batches, tables)
        # Samples that overflow are worse than any others.
        return loss if loss == loss else math.inf

    if begun is None:
        tables = list(tables)
        best = (told(judges, tables), tables)
        first, damping, idle = 0, DAMPING, 0
    else:
        tables = list(map(Tableau.from_dict, begun.tables))
        best = (begun.judged, list(map(Tableau.from_dict, begun.best)))
        first, damping, idle = begun.step, begun.damping, begun.idle
    here = objective.compare(batches, ends(batches, tables))
    size = at_once or len(batches)
    found = knobs(tables[0], what, free)
    # A single last row that is not free has no number to change.
    for step in range(first, steps if found else 0):
        if idle == PATIENCE:
            break
        some = [batches[(step * size + i) % len(batches)] for i in range(size)]
        gram, right = normal_equations(some, tables, found, objective, here.gaps)
        for _ in range(TRIES):
            turns = solved(gram, right, damping).reshape(len(tables), -1)
            after = compared_if_valid(batches, tables, found, turns, objective)
            if after is not None and after[0].loss < here.loss:
                break
            damping *= 10
        if after is None or after[0].loss >= here.loss:
            break
        here, tables = after
        damping = max(damping / 10, LEAST)
        judged = told(judges, tables)
        idle = 0 if judged < best[0] else idle + 1
        best = min(best, (judged, tables), key=lambda pair: pair[0])
        progress(step + 1, steps, f"NFE {tables[0].nfe}, refined: loss {best[0]:.4g}")
        now, held = ([table.to_dict() for table in each] for each in (tables, best[1]))
        keep(Refinement(step + 1, now, held, best[0], damping, idle))
    return best[1]


def compared_if_valid(
    batches: Sequence[Trajectories],
    tables: Sequence[Tableau],
    found: Sequence[Knob],
    turns: Tensor,
    objective: Objective,
) -> tuple[Compared, list[Tableau]] | None:
    """What the turned tables cost, and they; None where times cross, or samples overflow."""
    try:
        after = [
            turned(table, list(zip(found, turn.tolist(), strict=True)))
            for table, turn in zip(tables, turns, strict=True)
        ]
        compared = objective.compare(batches, ends(batches, after))
    except ValueError:
        return None
    return (compared, after) if compared.loss == compared.loss else None


@torch.no_grad()
def normal_equations(
    batches: Sequence[Trajectories],
    tables: Sequence[Tableau],
    found: Sequence[Knob],
    objective: Objective = SQUARES,
    gaps: Sets | None = None,
) -> tuple[Tensor, Tensor]:
    """J^T W J and J^T W r of the outputs' derivative J, their distance r, and its slopes W.

    Those of each sample, and, weighed as in the loss, those of the means: of these batches, or with
    `gaps`, of more.

    Of all numbers of the first table, then of the second, ..: those of a batch's own table with its
    shares.
    """
    total = len(found) * len(tables)
    gram = torch.zeros(total, total, dtype=torch.float64)
    right = torch.zeros(total, dtype=torch.float64)

    def add(shares: Sequence[float], weighted: Tensor, columns: Tensor, gap: Tensor) -> None:
        share = torch.tensor(shares, dtype=torch.float64)
        gram.add_(torch.kron(torch.outer(share, share), (weighted @ columns.T).cpu()))
        right.add_(torch.kron(share, (weighted @ gap).cpu()))

    derivatives, misses, many = [], [], 0
    for batch in batches:
        table = mixed(tables, batch.shares)
        run = Recorded.of(batch, table)
        end, truth = objective.outputs(run.end), objective.wanted(batch.states[-1])
        moved = [objective.outputs(run.end_with(knob)) for knob in found]
        steps = torch.tensor([size(knob, table) for knob in found]).to(end.each)[:, None]
        columns = torch.stack([(each.each - end.each).flatten() for each in moved]) / steps
        gap = truth.each - end.each
        add(batch.shares, columns * objective.slope(gap).flatten(), columns, gap.flatten())
        derivatives.append(torch.stack([each.means - end.means for each in moved]) / steps)
        misses.append(truth.means - end.means)
        many = gap.shape[1]
    off = gaps or over_sets(batches, misses)
    for shares, (count, columns) in over_sets(batches, derivatives).items():
        add(shares, many * count * objective.likeness * columns, columns, off[shares].mean)
    return gram, right


def size(knob: Knob, table: Tableau) -> float:
    """The step of a difference."""
    if knob.kind == "weights":
        return STEP
    along, row = table.grid.label if knob.kind == "labels" else table.grid.time, knob.row
    reach = abs(along[0] - along[-2]) if len(along) > 2 else table.grid.require_schedule().t_max
    # Down, and not past the next node; a clean one may have no label.
    room = abs(along[row] - along[row + 1]) / 2
    return -float(min(TIME_STEP * reach, room))


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run with the state before every row, and all outputs."""

    batch: Trajectories
    table: Tableau
    states: tuple[State, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, batch: Trajectories, table: Tableau) -> Recorded:
        """Run a table on a batch."""
        states = [initial(table, batch.start(table.grid))]
        outputs: list[Tensor] = []

        def record(state: State, x0: Tensor | None) -> None:
            states.append(state)
            outputs.append(torch.zeros_like(state.x) if x0 is None else x0)

        sample(batch.denoiser, table, states[0].x, callback=record)
        return cls(batch, table, tuple(states), tuple(outputs))

    @property
    def end(self) -> Tensor:
        """The last state."""
        return self.states[-1].x

    def end_with(self, knob: Knob) -> Tensor:
        """The last state when one number is changed by `size`: run again from where it matters."""
        turn, n = size(knob, self.table), self.table.grid.nfe
        if knob.kind == "weights":
            state = self.states[knob.row + 1]
            feature = self.states[knob.row].x if knob.column < 0 else self.outputs[knob.column]
            if knob.balanced:
                feature = feature - self.outputs[knob.row]
            state = replace(state, x=state.x + turn * feature)
            return advance(state, self.batch.denoiser, self.table, n).x
        table = turned(self.table, [(knob, turn)])
        # Where a node lies decides the row that leads to it, too.
        begun = knob.row - 1 if knob.kind == "times" and knob.row else knob.row
        state = self.states[begun]
        if begun == 0:
            state = replace(state, x=self.batch.start(table.grid))
        if begun < knob.row:
            # The node before is asked what it was.
            state = advance(state, lambda x, node: self.outputs[begun], table)
        return advance(state, self.batch.denoiser, table, n).x
