"""SA-Solver: stochastic Adams with a corrector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..schedules import Grid
from .basis import Basis
from .kernels import kernel
from .multistep import Variant, corrected, lam_moments, polynomial_weights, step_orders
from .rows import tableau
from .tableau import Tableau
from .unipc import unic


def sa(
    grid: Grid,
    predictor: int = 2,
    corrector: int = 2,
    tau: float | Callable[[float], float] = 1.0,
    prediction: Basis = "x0",
    lower_final: bool = True,
) -> Tableau:
    """SA-Solver: predictor and corrector through `predictor` and `corrector` outputs, tau(t).

    The step from node n uses tau(time[n]) and one noise for both halves, so that the corrector
    (whose outputs include the target's) folds into the next row as in UniPC; 0 switches it off.
    With two outputs in x0 the first moment is y / 2, as in the released code (Xue et al. 2023,
    "SA-Solver", algorithm 1). The paper recommends (3, 4), and (2, 2) with guidance.
    """
    if corrector < 0:
        raise ValueError(f"sa: corrector must be at least 0, got {corrector}")
    taus = [tau(t) for t in grid.time[:-1]] if callable(tau) else [tau] * grid.nfe
    linear = kernel(grid, prediction, taus)
    variant: Variant = "bh1" if prediction == "x0" else "exact"
    rule = lam_moments(linear, variant)
    rows = polynomial_weights(linear, grid.lam, rule, step_orders(grid, predictor, lower_final))
    counts = corrector_counts(grid, corrector, lower_final)
    weights = corrected(
        linear.carry, rows, unic(grid, linear, counts, variant, rows, (counts > 0).tolist())
    )
    return tableau(grid, prediction, linear.carry, weights, linear.noise, name="sa")


def corrector_counts(grid: Grid, count: int, lower_final: bool) -> np.ndarray:
    """Outputs of each corrector: one more than a predictor of that step could use, at most."""
    if count == 0:
        return np.zeros(grid.nfe, dtype=np.int64)
    if count == 1:
        return np.ones(grid.nfe, dtype=np.int64)
    return step_orders(grid, count - 1, lower_final) + 1
