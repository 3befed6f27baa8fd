"""From the rows a solver writes down to a tableau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..schedules import Grid
from .basis import Basis, Float, convert
from .tableau import Tableau, change_outputs


class Row(NamedTuple):
    """x[n+1] = carry x[base] + sum_k weights[k] m[k], for any earlier state `base` <= n."""

    base: int
    carry: float
    weights: Mapping[int, float]


def tableau(
    grid: Grid,
    basis: Basis,
    carry: Float,
    weights: Float,
    noise: Float | None = None,
    *,
    name: str,
    **meta: Any,
) -> Tableau:
    """The tableau of rows in `basis`; `noise` is the [N] weights of one fresh draw per row.

    On a grid that starts at pure noise an eps solver takes x0 at node 0 (see `Kernel`); the table
    is then stored in the x0 basis, where that is no exception.
    """
    n = grid.nfe
    square = np.zeros((n, n)) if noise is None else np.diag(noise)
    if basis == "x0" or grid.alpha[0] > 0:
        return Tableau(grid, carry, weights, square, basis, name, meta)
    mixed = Tableau(grid, carry, weights, square, "x0", name, meta).expanded()
    p, q = np.zeros(n), np.ones(n)
    p[1:], q[1:] = convert(basis, "x0", grid.alpha[1:-1], grid.sigma[1:-1])
    return Tableau.from_expanded(
        grid, change_outputs(mixed, p, q), basis="x0", name=name, meta=meta
    )


def chain(
    grid: Grid, basis: Basis, rows: Sequence[Row], *, name: str, **meta: Any
) -> Tableau:
    """The tableau of rows that start from earlier states.

    x[base] is eliminated: with x[n] = g x[base] + sum_k u[k] m[k] known from the rows between,
    x[base] = (x[n] - u m) / g.
    """
    n = grid.nfe
    carry, weights = np.zeros(n), np.zeros((n, n))
    for row, (base, factor, terms) in enumerate(rows):
        g, u = 1.0, np.zeros(n)
        for k in range(base, row):
            g, u = carry[k] * g, carry[k] * u + weights[k]
        carry[row] = factor / g
        for k, weight in terms.items():
            weights[row, k] = weight
        weights[row] -= carry[row] * u
    return tableau(grid, basis, carry, weights, name=name, **meta)
