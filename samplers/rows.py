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
    """x[n+1] = carry x[base] + sum_k weights[k] m[k] + sum_k noise[k] z[k], for any base <= n."""

    base: int
    carry: float
    weights: Mapping[int, float]
    noise: Mapping[int, float] = {}


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
    """The tableau of rows in `basis`; `noise` is [N, N], or [N] for one fresh draw per row.

    On a grid that starts at pure noise an eps solver takes x0 at node 0 (see `Kernel`); the table
    is then stored in the x0 basis, where that is no exception.
    """
    n = grid.nfe
    square = np.zeros((n, n)) if noise is None else np.diag(noise) if noise.ndim == 1 else noise
    if basis != "eps" or grid.alpha[0] > 0:
        return Tableau(grid, carry, weights, square, basis, name, meta)
    p, q = np.zeros(n), np.ones(n)
    p[1:], q[1:] = convert(basis, "x0", grid.alpha[1:-1], grid.sigma[1:-1])
    rows = change_outputs(Rows(carry, weights, square, np.zeros(n)), p, q)
    return Tableau(grid, **rows._asdict(), name=name, meta=meta)


def chain(grid: Grid, basis: Basis, rows: Sequence[Row], *, name: str, **meta: Any) -> Tableau:
    """The tableau of rows that start from earlier states (see `eliminate`)."""
    n = grid.nfe
    states, outputs, noises = np.zeros((3, n, n))
    for k, row in enumerate(rows):
        states[k, row.base] = row.carry
        for line, terms in ((outputs[k], row.weights), (noises[k], row.noise)):
            line[list(terms)] = list(terms.values())
    found = eliminate(states, outputs, noises)
    return tableau(grid, basis, found.carry, found.weights, found.noise, name=name, **meta)
