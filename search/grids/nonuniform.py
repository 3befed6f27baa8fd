"""DM-NonUniform: the grid that passes on least of the network's error; asks no network."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from ... import samplers
from ...samplers import Tableau
from ...schedules import Grid, Placed, Schedule, grid
from ...schedules.base import Float

# Their code builds its weights from the polynomials of this solver.
SOLVER = "ab-3"
# First rows that count by themselves.
FIRST = 3
STARTS = ("lam", "uniform")
# Shares of the way are at least about e^-REACH, so that nodes stay apart.
REACH = 8.0


def error_bound(table: Tableau, power: float = 1.0) -> float:
    """How much of the errors of all outputs a sample gets, if they add up in the worst way.

    The x0 predicted at node n is taken to be wrong by err_n = sigma_n^power / alpha_n: power 1 for
    pixels, 2 for latents. Row s passes c[s, n] err_n of it on to the last state, c[s, n] = weights
    [s, n] times all later carries, and the bound is sum_n |sum_s c[s, n]| err_n. But the first
    three rows add the root of sum_n (c[s, n] err_n)^2 instead: where steps are large,
    nodes could be had at which errors cancel by the letter of the bound.

    Xue et al. 2024, "Accelerating Diffusion Sampling with Optimized Time Steps", eq. 11 and its
    code, which has it for the weights of "ab-3", relative to sigma at the end (and from 8 steps on
    sets the first row apart only; the minimum that all starts then find is such a cancellation).
    Any table has weights. Raises ValueError for one that begins at pure noise, where this law is
    infinite.
    """
    table = table.in_basis("x0").numeric()
    grid, rows = table.grid, table.grid.nfe
    if grid.alpha[0] == 0:
        raise ValueError(
            "DM-NonUniform takes the error of x0 to grow like 1 / alpha, which is infinite at pure "
            "noise, where this grid begins; another method (gits, ays) places nodes from there"
        )
    later = np.append(np.cumprod(table.carry[:0:-1])[::-1], 1.0)
    error = grid.sigma[:-1] ** power / grid.alpha[:-1]
    passed = later[:, None] * table.weights * error
    apart = np.arange(rows) < FIRST
    alone = np.sqrt(np.square(passed[apart]).sum(1)).sum()
    return float(alone + np.abs(passed[~apart].sum(0)).sum())


def nonuniform(
    schedule: Schedule, steps: int, *, solver: str = SOLVER, power: float = 1.0
) -> Placed:
    """The nodes from t_max to t_min that minimise `error_bound` for a solver; seconds, no model.

    The gaps in lam are shares of the way, softmax of what SLSQP moves, from each of `STARTS`; the
    best minimum is taken. A run to clean data asks at these nodes, too, and goes on from the last
    but one: of such a run itself the bound says little, because its last step has all the weight.

    Raises ValueError for a schedule that begins at pure noise.
    """
    low, high = schedule.lam([schedule.t_max, schedule.t_min])
    # Also where there is nothing to choose.
    error_bound(samplers.build("ddim", grid(schedule, 1, "uniform", end="min")))

    def nodes(logits: Float) -> Grid:
        lam = low + (high - low) * np.append(0, np.cumsum(softmax(logits)))
        lam[-1] = high
        return Placed((tuple(lam.tolist()),)).place(schedule, steps, "min")

    def bound(logits: Float) -> float:
        return float(np.log(error_bound(samplers.build(solver, nodes(logits)), power)))

    found = []
    for spacing in STARTS:
        begun = np.log(np.diff(grid(schedule, steps, spacing, end="min").lam))
        begun = (begun - begun.mean()).clip(-REACH / 2, REACH / 2)
        room = [(-REACH / 2, REACH / 2)] * steps
        options = {"maxiter": 500, "ftol": 1e-10}
        found.append(minimize(bound, begun, method="SLSQP", bounds=room, options=options))
    best = min(found, key=lambda each: float(each.fun))
    return Placed.of(nodes(best.x))
