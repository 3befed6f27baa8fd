"""A table refined for its last state: Gauss-Newton on the distance to a teacher's samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..samplers import State, Tableau, advance, initial, sample
from ..samplers.fit import Trajectories, solved
from ..schedules import Grid
from .distance import distance, started

Progress = Callable[[int, int, str], None]
What = Literal["weights", "times", "labels"]
# Steps of the differences: of a coefficient, and of a time relative to the schedule's length.
STEP, TIME_STEP = 1e-3, 2e-3
# The damping, relative to the diagonal, to begin with and at least.
DAMPING, LEAST = 1e-3, 1e-6
TRIES = 6


@dataclass(frozen=True)
class Knob:
    """One number of a table: carry[row] (column -1), weights[row, column], or that of a node."""

    kind: What
    row: int
    column: int = 0


def knobs(table: Tableau, what: Sequence[What]) -> list[Knob]:
    """All numbers of a table that `what` names."""
    rows = range(table.grid.nfe)
    found = [Knob("weights", n, k) for n in rows for k in range(-1, n + 1) if "weights" in what]
    found += [Knob("times", n) for n in rows if "times" in what]
    return found + [Knob("labels", n) for n in rows if "labels" in what]


def turned(table: Tableau, turns: Sequence[tuple[Knob, float]]) -> Tableau:
    """The table with numbers added to some of its own; ValueError where times cross."""
    carry, weights = table.carry.copy(), table.weights.copy()
    time, label = table.grid.time.copy(), table.grid.label.copy()
    shift = label - table.grid.require_schedule().label(time)
    for knob, turn in turns:
        if knob.kind == "times":
            time[knob.row] += turn
        elif knob.kind == "labels":
            shift[knob.row] += turn
        elif knob.column < 0:
            carry[knob.row] += turn
        else:
            weights[knob.row, knob.column] += turn
    grid = Grid.from_times(table.grid.require_schedule(), time)
    grid = replace(grid, label=grid.label + shift)
    return replace(table, grid=grid, carry=carry, weights=weights)


def refine(
    batches: Sequence[Trajectories],
    table: Tableau,
    *,
    what: Sequence[What] = ("weights", "times"),
    steps: int = 6,
    held_out: Sequence[Trajectories] = (),
    progress: Progress = lambda done, total, text: None,
) -> Tableau:
    """The table whose samples end nearest to a teacher's, in the mean square; no gradients.

    Levenberg-Marquardt: the derivative of the last state with respect to every number of the table
    is a difference of two runs from the step on where they part, so that the numbers of row n cost
    N - 1 - n evaluations each and those of the last row none. A sample gives as many equations as
    it has pixels: a few hundred samples determine dozens of numbers, where a descent by gradients
    takes thousands of runs. What is best on `held_out` (or else on `batches`) is returned.

    Raises ValueError for a table in another basis than x0, a stochastic one, or one whose grid
    knows no schedule.
    """
    if table.basis != "x0" or table.stochastic:
        raise ValueError(f"{table!r}: only deterministic tables in x0 can be refined")
    judges = held_out or batches
    error, best = distance(batches, table), (distance(judges, table), table)
    damping, idle = DAMPING, 0
    for step in range(steps):
        found = knobs(table, what)
        gram, right = normal_equations(batches, table, found)
        for _ in range(TRIES):
            turns = solved(gram, right, damping).tolist()
            after = distance_if_valid(batches, table, list(zip(found, turns, strict=True)))
            if after is not None and after[0] < error:
                break
            damping *= 10
        if after is None or after[0] >= error:
            break
        error, table = after
        damping = max(damping / 10, LEAST)
        judged = distance(judges, table)
        idle = 0 if judged < best[0] else idle + 1
        best = min(best, (judged, table), key=lambda pair: pair[0])
        progress(step + 1, steps, f"NFE {table.nfe}: RMSE {best[0]:.4g}")
        if idle == 2:
            break
    return best[1]


def distance_if_valid(
    batches: Sequence[Trajectories], table: Tableau, turns: list[tuple[Knob, float]]
) -> tuple[float, Tableau] | None:
    """The turned table and its distance; None where its times cross, or its samples overflow."""
    try:
        found = turned(table, turns)
    except ValueError:
        return None
    error = distance(batches, found)
    return (error, found) if error == error else None


@torch.no_grad()
def normal_equations(
    batches: Sequence[Trajectories], table: Tableau, found: Sequence[Knob]
) -> tuple[Tensor, Tensor]:
    """J^T J and J^T r of the last state's derivative J and distance r to the teacher, float64."""
    gram = torch.zeros(len(found), len(found), dtype=torch.float64)
    right = torch.zeros(len(found), dtype=torch.float64)
    for batch in batches:
        run = Recorded.of(batch, table)
        columns = torch.stack([(run.end_with(knob) - run.end).double().flatten() for knob in found])
        columns /= torch.tensor([size(knob, table) for knob in found]).to(columns)[:, None]
        gap = (batch.states[-1] - run.end).double().flatten()
        gram += (columns @ columns.T).cpu()
        right += (columns @ gap).cpu()
    return gram, right


def size(knob: Knob, table: Tableau) -> float:
    """The step of a difference."""
    if knob.kind == "weights":
        return STEP
    law = table.grid.require_schedule()
    along = table.grid.label if knob.kind == "labels" else table.grid.time
    # Down, where there is always room.
    return (
        -TIME_STEP * float(abs(along[0] - along[-2])) if len(along) > 2 else -TIME_STEP * law.t_max
    )


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
        states = [initial(table, started(batch, table))]
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
            state = replace(state, x=state.x + turn * feature)
            return advance(state, self.batch.denoiser, self.table, n).x
        table = turned(self.table, [(knob, turn)])
        state = self.states[knob.row]
        if knob.row == 0:
            state = replace(state, x=started(self.batch, table))
        return advance(state, self.batch.denoiser, table, n).x
