"""Noise for deterministic solvers: back to more noise, and down again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedules import Grid
from ..schedules.base import Float
from .registry import build
from .tableau import Tableau


def restarted(
    solver: str, grid: Grid, levels: Sequence[int] = (), *, back: float = 0.5, **options: object
) -> Tableau:
    """A deterministic solver that goes back to more noise at some nodes, and on from there.

    At node k of `levels` (all but the first by default) the state is noised to lam - `back` by the
    forward process, and the solver takes all steps up to the next level from there, so that each
    level begins a run of its own, without the outputs before it:

        x' = (alpha' / alpha) x + sqrt(sigma'^2 - (alpha' / alpha)^2 sigma^2) z

    which keeps the law of every node (Xu et al. 2023, "Restart Sampling for Improving Generative
    Processes"), not further back than the schedule begins. It costs no evaluation: the steps up to
    the next level are longer by what was gone back. meta["levels"] are the levels' nodes in this
    table.

    Raises ValueError for a solver that draws noise, for levels that do not rise, and a grid without
    a schedule.
    """
    law = grid.require_schedule()
    starts = list(levels) or list(range(1, grid.nfe))
    if (
        starts != sorted({*starts})
        or not 0 < min(starts, default=1) <= max(starts, default=1) < grid.nfe
    ):
        raise ValueError(f"restarted: levels rise from 1 to {grid.nfe - 1}, not {starts}")
    if back <= 0:
        raise ValueError(f"restarted: back is above 0, not {back}")
    most = float(law.lam(law.t_max))
    tables, lam, stage = [], [], []
    for first, last in zip([0, *starts], [*starts, grid.nfe], strict=True):
        there = max(float(grid.lam[first]) - back, most) if first else float(grid.lam[0])
        inner = stretched(grid.lam[first : last + 1], there)
        table = build(solver, Grid.from_lams(law, inner), **options)
        if table.stochastic:
            raise ValueError(f"restarted: {solver} draws noise itself")
        tables.append(table.in_basis("x0").numeric())
        # What is noisier than the level is inside it.
        inside = table.grid.stage | (table.grid.lam <= grid.lam[first])
        lam += [grid.lam[first], *table.grid.lam[:-1]] if first else [*table.grid.lam[:-1]]
        stage += [False, True, *inside[1:-1]] if first else [*table.grid.stage[:-1]]
    nodes = grid.with_nodes(np.array([*lam, grid.lam[-1]]), np.array([*stage, False]))
    n = nodes.nfe
    carry, weights, noise, bias = np.zeros(n), np.zeros((n, n)), np.zeros((n, n)), np.zeros(n)
    at, places = 0, []
    for table in tables:
        if at:
            alpha, sigma = nodes.alpha[at : at + 2], nodes.sigma[at : at + 2]
            carry[at] = kept = alpha[1] / alpha[0]
            noise[at, at] = np.sqrt(max(sigma[1] ** 2 - (kept * sigma[0]) ** 2, 0.0))
            places.append(at)
            at += 1
        rows = slice(at, at + table.grid.nfe)
        carry[rows], weights[rows, rows], bias[rows] = table.carry, table.weights, table.bias
        at = rows.stop
    meta = {"levels": places, "back": back}
    return Tableau(nodes, carry, weights, noise, "x0", f"{solver}-restarted", meta, bias)


def stretched(lam: Float, there: float) -> Float:
    """The same nodes with the first one moved, and those between in proportion."""
    if not np.isfinite(lam[0]) or there == lam[0]:
        return lam
    end = lam[-1] if np.isfinite(lam[-1]) else lam[-2]
    if end == lam[0]:
        # A single step into clean data.
        return np.array([there, lam[-1]])
    moved = there + (lam - lam[0]) * (end - there) / (end - lam[0])
    return np.where(np.isfinite(lam), moved, lam)
