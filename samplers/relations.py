"""Relations between states, brought to the one form that the executor runs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..schedules.base import Float

# A result below this share of the terms that cancelled in it is their rounding.
DUST = 1e-12


class Rows(NamedTuple):
    """The arrays of a tableau: carry [N], weights [N, N], noise [N, N], bias [N].

    Dimensions that trail these broadcast against the state.
    """

    carry: Float
    weights: Float
    noise: Float
    bias: Float


def trailing(values: Float, dims: int) -> Float:
    """The array with `dims` more dimensions of one entry behind."""
    return values.reshape(*values.shape, *[1] * dims)


def aligned(values: Float, lead: int, dims: int) -> Float:
    """An array whose trailing dimensions, behind the first `lead`, are made `dims` many."""
    missing = dims - (values.ndim - lead)
    return values.reshape(*values.shape[:lead], *[1] * missing, *values.shape[lead:])


def eliminate(
    states: Float,
    outputs: Float,
    noise: Float,
    own: Float | None = None,
    bias: Float | None = None,
) -> Rows:
    """Rows x[n+1] = carry x[n] + .. from relations that use any earlier states.

    Given x[n+1] = sum_{k<=n} states[n,k] x[k] + outputs[n] m + noise[n] z + bias[n], all [N, N]
    and the bias [N] (plus own[n] x[n], [N], where that must cancel cleanly against states[n,n]),
    every x[k] with k < n is replaced through x[k] = (x[k+1] - weights[k] m - noise[k] z - bias[k])
    / carry[k], from rows that are already known. Trailing dimensions are per pixel. Going through
    neighbours keeps all numbers at the scale of the states, where the way through x[0] would lose
    what the signal has gained since. Raises ValueError if a relation needs a state that the ones
    after it have forgotten (carry 0).
    """
    n = len(outputs)
    bias = np.zeros(n) if bias is None else bias
    own = np.zeros(n) if own is None else own
    dims = max(states.ndim - 2, outputs.ndim - 2, noise.ndim - 2, own.ndim - 1)
    states, own = aligned(states, 2, dims), aligned(own, 1, dims)
    # An image of a bias leaves numbers before states and outputs numbers.
    bias = aligned(bias, 1, max(dims, bias.ndim - 1))
    parts = [aligned(outputs, 2, dims), aligned(noise, 2, dims), bias[:, None]]
    rows: list[list[Float]] = [[] for _ in parts]
    used = np.asarray((states.reshape(n, n, -1) != 0).any(-1))
    carry: list[Float] = []
    for row in range(n):
        # x[k] = g x[row] + u (m, z, 1); bounds are what the sums would be without cancellation.
        first = int(used[row, :row].argmax()) if used[row, :row].any() else row
        share = {row: np.ones_like(own[row])}
        for k in range(row - 1, first - 1, -1):
            if (carry[k] == 0).any():
                raise ValueError(
                    f"row {row} needs state {k}, which state {k + 1} has forgotten (carry 0)"
                )
            share[k] = share[k + 1] / carry[k]
        back = [k for k in range(row - 1, first - 1, -1) if used[row, k]]
        factor = states[row, row] + own[row]
        bound = np.abs(states[row, row]) + np.abs(own[row])
        for k in back:
            moved = states[row, k] * share[k]
            factor, bound = factor + moved, bound + np.abs(moved)
        carry.append(clean(factor, bound))
        for part, known in zip(parts, rows, strict=True):
            total, bound = part[row], np.abs(part[row])
            if not part.any():
                # What is zero everywhere stays so.
                known.append(total)
                continue
            u = bound_u = np.zeros_like(total)
            for k in range(row - 1, first - 1, -1):
                u = (u - known[k]) / carry[k]
                bound_u = (bound_u + np.abs(known[k])) / np.abs(carry[k])
                if used[row, k]:
                    total = total + states[row, k] * u
                    bound = bound + np.abs(states[row, k]) * bound_u
            known.append(clean(total, bound))
    weights, noise, bias = (stacked(known) for known in rows)
    return Rows(stacked(carry), weights, noise, bias[:, 0])


def clean(total: Float, bound: Float) -> Float:
    """Sums without what is rounding of the terms that cancelled in them."""
    return np.where(np.abs(total) > DUST * bound, total, 0.0)


def stacked(rows: list[Float]) -> Float:
    """Rows as one array, broadcast to one shape."""
    return np.stack(np.broadcast_arrays(*rows))


def change_outputs(rows: Rows, p: Float, q: Float) -> Rows:
    """The rows for other outputs m', where m[k] = p[k] x[k] + q[k] m'[k].

    p and q are [N], trailing dimensions per pixel.
    """
    dims = max(rows.weights.ndim - 2, p.ndim - 1)
    weights = aligned(rows.weights, 2, dims)
    p, q = aligned(p, 1, dims), aligned(q, 1, dims)
    return eliminate(weights * p, weights * q, rows.noise, rows.carry, rows.bias)
