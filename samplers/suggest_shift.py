"""How far, and above which time, to shift times: from a few trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..schedules import Grid
from ..schedules.base import Float
from .executor import State, sample
from .matching import Window, marginal_variance, sample_variance, warn_if_flat
from .recall import Denoiser
from .registry import build
from .spans import places_of
from .tableau import Tableau


class Suggestion(NamedTuple):
    """What `suggest_time_shift` found; the first three are arguments of `time_shift`.

    Of the K inner nodes, at labels `label`: `drift` in labels, `gap` and `error` in variance, [K].
    """

    window: float
    cutoff: float
    data_variance: float
    label: Float
    drift: Float
    gap: Float
    error: Float


def suggest_time_shift(
    solver: str | Callable[[Grid], Tableau],
    grid: Grid,
    denoiser: Denoiser,
    x: Tensor,
    *,
    data_variance: float | None = None,
    refine: int = 8,
) -> Suggestion:
    """A window and a cutoff for `time_shift`, from the trajectories of a few noises.

    x [B, ...] is noise at node 0. The solver runs from it, and so does UniPC-3 in `refine` steps
    for each of the grid's, which are taken as the truth. With v the variance of a sample over its
    entries and tau(v) the time of the schedule where V is that, of all it has, at each inner node

        gap = rms(v(solver) - v(truth)), which a shift can mend,
        error = rms(v(truth) - V(t)), which the rule takes for a shift where there is none: chance,
                V sqrt(2 / (D - 1)) for D independent entries, and what V leaves out,
        drift = rms(tau(v(solver)) - tau(v(truth))) in labels.

    The cutoff is the label after the last node whose gap is larger than its error; the window is
    twice the largest drift of such nodes, or what fits between neighbours, and 0 if there are none.
    `data_variance` is measured at the ends of the true trajectories unless it is given (0 is the
    paper's rule). Warns where variances do not tell times, see `time_shift`.
    """
    law = grid.require_schedule()
    table = solver(grid) if callable(solver) else build(solver, grid)
    fine, places = cut_in_lam(grid, refine), places_of(grid, table)
    inner = [k for k in range(1, grid.nfe) if not table.grid.stage[places[k]]]
    ends, truth = variances(denoiser, build("unipc-3", fine), x, [k * refine for k in inner])
    _, found = variances(denoiser, table, x, [places[k] for k in inner])
    if data_variance is None:
        data_variance = float(ends.mean())
    warn_if_flat(law, data_variance)
    low, high = law.label([law.t_min, law.t_max])
    times = Window.around(grid, 0, 2 * (high - low), data_variance)
    right, ours = (
        law.label(times.match(each.ravel())).reshape(each.shape) for each in (truth, found)
    )
    label = grid.label[inner]
    expected = marginal_variance(law, grid.time[inner], data_variance)[:, None]
    drift, gap, error = (
        np.sqrt(np.square(off).mean(1)) for off in (ours - right, found - truth, truth - expected)
    )
    useful = np.flatnonzero(gap > error)
    if len(useful) == 0:
        return Suggestion(0.0, float(grid.label[0]), data_variance, label, drift, gap, error)
    end = inner[useful[-1]] + 1
    cutoff = max(low, grid.label[end])
    # Windows of neighbours must not meet; none reaches clean data.
    near = grid.label[: end + 1][np.isfinite(grid.lam[: end + 1])]
    width = min(2 * drift[useful].max(), 0.99 * np.diff(-near).min())
    return Suggestion(float(width), float(cutoff), data_variance, label, drift, gap, error)


def cut_in_lam(grid: Grid, refine: int) -> Grid:
    """The grid with every step cut into `refine`, evenly in lam, or from pure noise in time.

    A step into clean data is left whole: there is no time to ask a network at inside it.
    """
    law = grid.require_schedule()
    lams: list[float] = []
    for start, stop in pairwise(grid.nodes):
        lams.append(start.lam)
        if np.isinf(stop.lam):
            continue
        times = np.linspace(start.time, stop.time, refine + 1)
        evenly = np.isfinite(start.lam)
        inside = np.linspace(start.lam, stop.lam, refine + 1) if evenly else law.lam(times)
        lams.extend(inside[1:-1].tolist())
    lams.append(grid.nodes[-1].lam)
    return grid.with_nodes(np.array(lams), np.zeros(len(lams), dtype=bool))


def variances(
    denoiser: Denoiser, table: Tableau, x: Tensor, places: Sequence[int]
) -> tuple[Float, Float]:
    """The variance of each sample at the end of a run, [B], and at some nodes, [K, B]."""
    found: dict[int, Float] = {}

    def keep(state: State, x0: Tensor | None) -> None:
        found[state.step] = sample_variance(state.x)

    sample(denoiser, table, x, seeds=range(len(x)), callback=keep)
    return found[table.grid.nfe], np.array([found[k] for k in places]).reshape(-1, len(x))
