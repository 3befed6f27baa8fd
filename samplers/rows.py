"""From the rows a solver writes down to a tableau."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..schedules import Grid
from ..schedules.base import Float
from .basis import Basis, convert
from .relations import Rows, change_outputs, eliminate
from .tableau import Tableau


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
    if basis != "eps" or grid.alpha[0] > 0:
        return Tableau(grid, carry, weights, square, basis, name, meta)
    p, q = np.zeros(n), np.ones(n)
    p[1:], q[1:] = convert(basis, "x0", grid.alpha[1:-1], grid.sigma[1:-1])
    rows = change_outputs(Rows(carry, weights, square), p, q)
    return Tableau(grid, *rows, "x0", name, meta)


def chain(grid: Grid, basis: Basis, rows: Sequence[Row], *, name: str, **meta: Any) -> Tableau:
    """The tableau of rows that start from earlier states (see `eliminate`)."""
    n = grid.nfe
    states, outputs = np.zeros((n, n)), np.zeros((n, n))
    for row, (base, factor, terms) in enumerate(rows):
        states[row, base] = factor
        for k, weight in terms.items():
            outputs[row, k] = weight
    carry, weights, _ = eliminate(states, outputs, np.zeros((n, n)))
    return tableau(grid, basis, carry, weights, name=name, **meta)
