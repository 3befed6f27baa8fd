"""The cheapest way through candidate nodes in exactly so many steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...schedules import Grid, Placed
from ...schedules.base import Float


def shortest(cost: Float, steps: int, growth: float = 1.0) -> tuple[int, ...]:
    """The steps + 1 of T + 1 candidates, from the first to the last, that cost least.

    They minimise sum_k growth^k cost[i_k, i_(k+1)] exactly, by dynamic programming over where a
    step begins and how many are left: V_1[i] = cost[i, T], and V_k[i] = min_{j > i} cost[i, j] +
    growth V_(k-1)[j]. `cost` is [T + 1, T + 1], read above its diagonal only. Raises ValueError for
    more steps than candidates allow, and costs that are NaN.
    """
    top = len(cost) - 1
    if cost.shape != (top + 1, top + 1) or not 1 <= steps <= top:
        raise ValueError(
            f"shortest: {steps} steps through candidates with costs {cost.shape}; at least 1, and "
            f"fewer than the {top + 1} candidates"
        )
    ahead = np.where(np.triu(np.ones(cost.shape, dtype=bool), 1), cost, np.inf)
    if np.isnan(ahead).any():
        i, j = np.argwhere(np.isnan(ahead))[0]
        raise ValueError(f"shortest: the cost of a step from candidate {i} to {j} is NaN")
    value, choices = ahead[:, top], []
    for _ in range(steps - 1):
        total = ahead + growth * value
        choices.append(total.argmin(1))
        value = total.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return (*path, top)


def length(cost: Float, path: Sequence[int], growth: float = 1.0) -> float:
    """What a path costs: sum_k growth^k cost[i_k, i_(k+1)]."""
    costs = cost[path[:-1], path[1:]]
    return float(costs @ growth ** np.arange(len(costs)))


def cheapest(grid: Grid, cost: Float, steps: Sequence[int], growth: float = 1.0) -> Placed:
    """The cheapest nodes of a grid of candidates, for some numbers of steps."""
    paths = [shortest(cost, each, growth) for each in steps]
    return Placed.of(*(grid.select(path, [False] * len(path)) for path in paths))
