"""The one rule behind all multistep solvers: integrate a polynomial through past outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..schedules import Grid
from ..schedules.base import Float
from .kernels import Kernel, interpolate, moments

Orders = int | Sequence[int]
Variant = Literal["exact", "bh1", "bh2", "official", "half_third"]

# Moments of the rule, [rows, order], for a number of nodes and the rows that use it.
Moments = Callable[[int, NDArray[np.int64]], Float]


def step_orders(
    grid: Grid, order: Orders, lower_final: bool = False, *, regular_end: bool = False
) -> NDArray[np.int64]:
    """The order of each of the N steps: at most what was asked and what the history allows.

    `order` is one number or one per step. The first steps have few outputs to use; a first output
    at pure noise (lam = -inf) is never used by later steps; a step from pure noise is of order 1,
    and so is one into clean data unless the rule is regular there (`regular_end`; polynomials in
    lam are not). `lower_final` also lowers the last steps to .., 2, 1 when `order` is a number.
    Raises ValueError for an order below 1 or a list of another length than N.
    """
    n = grid.nfe
    if grid.stage.any():
        raise ValueError(
            f"a multistep solver wants a grid of plain steps, and node {int(grid.stage.argmax())} "
            f"is a stage inside one"
        )
    wanted = np.full(n, order) if np.ndim(order) == 0 else np.asarray(order)
    if wanted.shape != (n,):
        raise ValueError(f"order: {n} steps need {n} orders, got {len(wanted)}")
    if (wanted < 1).any() or (wanted != wanted.astype(int)).any():
        raise ValueError(f"order: every order must be a whole number of at least 1, got {order}")
    unusable = int(np.isneginf(grid.lam[0]))
    available = np.maximum(np.arange(1, n + 1) - unusable, 1)
    orders = np.minimum(wanted.astype(np.int64), available)
    if lower_final and np.ndim(order) == 0:
        orders = np.minimum(orders, np.arange(n, 0, -1))
    possible = np.isfinite(grid.lam[:-1]) & (np.isfinite(grid.lam[1:]) | regular_end)
    return np.where(possible, orders, 1)


def lam_moments(kernel: Kernel, variant: Variant = "exact") -> Moments:
    """Moments for polynomials in lam, exact or with one of the published simplifications.

    With two nodes, mu_1 is mu_0 / 2 in `bh2` (UniPC B(h) = e^h - 1, and the midpoint form of
    DPM-Solver) and y / 2 in `bh1` (UniPC B(h) = h, and SA-Solver). With three, `official` halves
    mu_2 (third order of DPM-Solver++ as released; it converges with order 2) and is bh2 with two.
    """

    def rule(count: int, rows: NDArray[np.int64]) -> Float:
        y = kernel.y[rows]
        mu = moments(y, count, kernel.basis).T.copy()
        if count == 2 and variant in ("bh2", "official"):
            mu[:, 1] = mu[:, 0] / 2
        elif count == 2 and variant == "bh1":
            # In eps the moments leave out e^y, which `scale` holds.
            mu[:, 1] = y / 2 * (np.exp(-y) if kernel.basis == "eps" else 1)
        elif count == 3 and variant in ("official", "half_third"):
            mu[:, 2] /= 2
        return kernel.scale[rows, None] * mu

    return rule


def polynomial_weights(
    kernel: Kernel,
    coordinate: Float,
    rule: Moments,
    counts: NDArray[np.int64],
    ahead: int = 0,
) -> Float:
    """Weights [N, N + ahead] of the polynomial in `coordinate` through `counts[n]` outputs.

    Row n uses the outputs n + ahead, n + ahead - 1, ..: `ahead` = 0 predicts, 1 corrects (the
    output at the target is known). `coordinate` is [N + 1]; a count of 0 leaves the row empty.
    """
    n = len(counts)
    weights = np.zeros((n, n + ahead))
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        if count == 1 and not ahead:
            weights[rows, rows] = kernel.first[rows]
            continue
        columns = rows[:, None] + ahead - np.arange(count)
        step = coordinate[rows + 1] - coordinate[rows]
        nodes = (coordinate[columns] - coordinate[rows][:, None]) / step[:, None]
        weights[rows[:, None], columns] = interpolate(nodes, rule(int(count), rows))
    return weights


def corrected(carry: Float, predictor: Float, corrector: Float) -> Float:
    """Fold an output-reusing corrector into a predictor: rows of one linear multistep method.

    The corrected state is the predicted one plus (C[n] - P[n]) m, so the next row gains
    carry[n+1] (C[n] - P[n]). `corrector` is [N, N + 1]; its last row is not used, and a row that
    should not correct equals the predictor's.
    """
    weights = predictor.copy()
    weights[1:] += carry[1:, None] * (corrector[:-1, :-1] - predictor[:-1])
    return weights
