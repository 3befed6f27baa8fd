"""Relations between states, brought to the one form that the executor runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..schedules.base import Float

# A result below this share of the terms that cancelled in it is their rounding.
DUST = 1e-12


class Rows(NamedTuple):
    """The arrays of a tableau: carry [N], weights [N, N], noise [N, N]."""

    carry: Float
    weights: Float
    noise: Float


def eliminate(states: Float, outputs: Float, noise: Float, own: Float | None = None) -> Rows:
    """Rows x[n+1] = carry x[n] + .. from relations that use any earlier states.

    Given x[n+1] = sum_{k<=n} states[n,k] x[k] + outputs[n] m + noise[n] z, all [N, N] (plus
    own[n] x[n], [N], where that must cancel cleanly against states[n,n]), every x[k] with k < n is
    replaced through x[k] = (x[k+1] - weights[k] m - noise[k] z) / carry[k], from rows
    that are already known. Going through neighbours keeps all numbers at the scale of the states,
    where the way through x[0] would lose what the signal has gained since. Raises ValueError if a
    relation needs a state that the ones after it have forgotten (carry 0).
    """
    n = len(outputs)
    right = np.hstack([outputs, noise])
    carry, rows = np.zeros(n), np.zeros_like(right)
    for row in range(n):
        # x[k] = g x[row] + u (m, z); `bound` is what u and the sums would be without cancellation.
        g, u, bound_u = 1.0, np.zeros(2 * n), np.zeros(2 * n)
        start = 0.0 if own is None else own[row]
        factor, bound_factor = states[row, row] + start, abs(states[row, row]) + abs(start)
        total, bound = right[row].copy(), np.abs(right[row])
        used = np.flatnonzero(states[row, :row])
        for k in range(row - 1, used[0] - 1 if len(used) else row - 1, -1):
            if carry[k] == 0:
                raise ValueError(
                    f"row {row} needs state {k}, which state {k + 1} has forgotten (carry 0)"
                )
            g, u, bound_u = (
                g / carry[k],
                (u - rows[k]) / carry[k],
                (bound_u + np.abs(rows[k])) / abs(carry[k]),
            )
            weight = states[row, k]
            if weight:
                factor, bound_factor = factor + weight * g, bound_factor + abs(weight * g)
                total, bound = total + weight * u, bound + abs(weight) * bound_u
        carry[row] = factor if abs(factor) > DUST * bound_factor else 0.0
        rows[row] = np.where(np.abs(total) > DUST * bound, total, 0.0)
    return Rows(carry, rows[:, :n], rows[:, n:])


def change_outputs(rows: Rows, p: Float, q: Float) -> Rows:
    """The rows for other outputs m', where m[k] = p[k] x[k] + q[k] m'[k] (p, q are [N])."""
    return eliminate(rows.weights * p, rows.weights * q, rows.noise, rows.carry)
