"""How far the rows of a table are from exact: its order, stated by the table itself."""

from __future__ import annotations

import numpy as np

from ..schedules import Grid
from ..schedules.base import Float
from .basis import Basis
from .kernels import moments


def order_defects(grid: Grid, carry: Float, weights: Float, basis: Basis, orders: int) -> Float:
    """Residual of each row against the moment conditions, float64 [N, orders]; basis x0 or eps.

    Start from an exact state at the last node that is not a stage and feed outputs v^j, where
    v = (lam - lam_s) / h is the distance from that node in units of the row's step. Entry [n, j] is
    the state that the rows reach minus the exact one, over the weight of a constant output. A row
    has order p when its entries j < p vanish. Rows of infinite length can only be exact for j = 0;
    their other entries are inf. A stochastic row (in x0) is tested in the mean, with the tau that
    its carry implies.
    """
    defects = np.zeros((grid.nfe, orders))
    base, g, u = 0, 1.0, np.zeros(grid.nfe)
    for n in range(grid.nfe):
        if not grid.stage[n]:
            base, g, u = n, 1.0, np.zeros(grid.nfe)
        g, u = carry[n] * g, carry[n] * u + weights[n]
        scale, kept = grid.alpha[n + 1], grid.sigma[n + 1] / grid.sigma[base]
        if basis == "eps":
            kept = grid.alpha[n + 1] / grid.alpha[base]
            scale = -kept * grid.sigma[base]
        h = grid.lam[n + 1] - grid.lam[base]
        # g = e^(-tau^2 h) kept, and the mean of the SDE decays over y = (1 + tau^2) h.
        decay = np.log(kept / g) if g > 0 and kept > 0 else 0.0
        y = h + (decay if abs(decay) > 1e-12 else 0.0)
        first = -scale * np.expm1(-y)
        defects[n, 0] = (u.sum() - first) / first
        if not np.isfinite(h):
            defects[n, 1:] = np.inf
            continue
        used = np.flatnonzero(u)
        v = (grid.lam[used] - grid.lam[base]) / h
        exact = scale * moments(y, orders, basis)
        powers = np.where(np.isfinite(v), v, 0.0) ** np.arange(1, orders)[:, None]
        defects[n, 1:] = (powers @ u[used] - exact[1:]) / first
        if not np.isfinite(v).all():
            defects[n, 1:] = np.inf
    return defects
