"""How far the rows of a table are from exact: its order, stated by the table itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..schedules.base import Float
from .basis import Basis
from .kernels import moments

if TYPE_CHECKING:
    from .tableau import Tableau


def order_defects(table: Tableau, orders: int = 5) -> Float:
    """Residual of each row against the moment conditions, float64 [N, orders].

    Start from an exact state at the last node that is not a stage and feed outputs v^j, where
    v = (lam - lam_s) / h is the distance from that node in units of the row's step. Entry [n, j] is
    the state that the rows reach minus the exact one, over the weight of a constant output. A row
    has order p when its entries j < p vanish. Rows of infinite length can only be exact for j = 0;
    their other entries are inf. Outputs in eps are tested as eps, all others as x0; a stochastic
    row is tested in the mean, with the tau that its carry implies.
    """
    basis: Basis = "eps" if table.basis == "eps" and not table.stochastic else "x0"
    table = table.numeric().in_basis(basis)
    grid = table.grid
    defects = np.zeros((grid.nfe, orders))
    base, g, u = 0, 1.0, np.zeros(grid.nfe)
    for n in range(grid.nfe):
        if not grid.stage[n]:
            base, g, u = n, 1.0, np.zeros(grid.nfe)
        g, u = table.carry[n] * g, table.carry[n] * u + table.weights[n]
        scale, carry = grid.alpha[n + 1], grid.sigma[n + 1] / grid.sigma[base]
        if basis == "eps":
            carry = grid.alpha[n + 1] / grid.alpha[base]
            scale = -carry * grid.sigma[base]
        h = grid.lam[n + 1] - grid.lam[base]
        # g = e^(-tau^2 h) carry, and the mean of the SDE decays over y = (1 + tau^2) h.
        decay = np.log(carry / g) if g > 0 and carry > 0 else 0.0
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
