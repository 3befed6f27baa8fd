"""Where a fitted table is to ask the network: some of a teacher's nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...eval.progress import Progress, silent
from ...samplers import Tableau
from ...samplers.fit import Free, fit_rows
from .objective import SQUARES, Objective
from .teacher import Teacher

# Of the teacher's nodes, where a student may begin: most models waste the first steps on noise.
STARTS = (0.0, 0.06, 0.12, 0.18, 0.24)
# How the rest is spread: powers of an even spacing.
POWERS = (1.0, 0.8, 1.25)


@dataclass(frozen=True, eq=False)
class Placed:
    """The tables (one for each share) on nodes `places` of a teacher, and the loss of samples."""

    places: tuple[int, ...]
    tables: list[Tableau]
    loss: float


def place(
    teacher: Teacher,
    nfe: int,
    *,
    moves: int = 40,
    base: str = "unipc-3",
    ridge: float = 1e-6,
    free: Free = "inner",
    objective: Objective = SQUARES,
    progress: Progress = silent,
) -> Placed:
    """The nodes, of `nfe` of a teacher's, on which the closed-form table has the least loss.

    Every try is a fit (`fit_rows`): first a few spreads, then single nodes are moved, by fewer
    and fewer places, as long as that helps and at most `moves` times.
    """
    total = teacher.grid.nfe
    if not 1 <= nfe < total:
        raise ValueError(f"a teacher of {total} steps has no nodes for {nfe} of a student")
    tried: dict[tuple[int, ...], Placed] = {}
    spreads = list(dict.fromkeys(spread(total, nfe, s, p) for s in STARTS for p in POWERS))

    def attempt(places: tuple[int, ...]) -> float:
        if places not in tried:
            tried[places] = placed(teacher, places, base, ridge, free, objective)
            best = min(each.loss for each in tried.values())
            progress(len(tried), len(spreads) + moves, f"NFE {nfe}, nodes: loss {best:.4g}")
        return tried[places].loss

    best = min(spreads, key=attempt)
    reach = max(1, total // (4 * nfe))
    while reach:
        moved = False
        for candidate in neighbours(best, reach, total):
            if len(tried) >= len(spreads) + moves:
                return tried[best]
            if attempt(candidate) < tried[best].loss:
                best, moved = candidate, True
                break
        reach = reach if moved else reach // 2
    return tried[best]


def spread(total: int, nfe: int, start: float, power: float) -> tuple[int, ...]:
    """Places from `start` of the way on, with gaps after a power of an even spacing."""
    first = round(start * total)
    u = 1 - (1 - np.arange(nfe) / nfe) ** power
    # No two at one place, and none at the end.
    wanted = np.round(first + (total - first) * u).astype(int)
    for k in range(1, nfe):
        wanted[k] = max(wanted[k], wanted[k - 1] + 1)
    for k in reversed(range(nfe)):
        wanted[k] = min(wanted[k], total - nfe + k)
    return tuple(wanted.tolist())


def neighbours(places: Sequence[int], reach: int, total: int) -> list[tuple[int, ...]]:
    """All that differ by one node moved by `reach`, where that keeps the order."""
    found = []
    for k in range(len(places)):
        for step in (reach, -reach):
            moved = [*places[:k], places[k] + step, *places[k + 1 :]]
            if moved[0] >= 0 and moved[-1] < total and moved == sorted(set(moved)):
                found.append(tuple(moved))
    return found


def placed(
    teacher: Teacher,
    places: tuple[int, ...],
    base: str,
    ridge: float,
    free: Free = "inner",
    objective: Objective = SQUARES,
) -> Placed:
    """The fit on these nodes."""
    grid, met = teacher.trajectories(places)
    tables, ends = fit_rows(met, grid, base=base, ridge=ridge, free=free)
    return Placed(places, tables, objective.compare(met, ends).loss)
