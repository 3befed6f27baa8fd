"""Which nodes of a grid a row depends on, where a sample may move them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ..schedules import Grid
from .matching import Window
from .tableau import Tableau

Mode = Literal["source", "model", "destination"]


class Span(NamedTuple):
    """What of a row may move: nodes `low` to `high` of the grid; `first` of its step."""

    low: int
    high: int
    first: bool


def places_of(grid: Grid, table: Tableau) -> tuple[int, ...]:
    """For each node of the grid, its place in the table of a solver, which may insert stages."""
    if table.grid.nfe == grid.nfe:
        return tuple(range(grid.nfe + 1))
    return tuple(np.flatnonzero(~table.grid.stage).tolist())


def span_of(table: Tableau, places: Sequence[int], n: int, mode: Mode) -> Span | None:
    """What of row n moves in this mode."""
    steps = [k for k, place in enumerate(places) if not table.grid.stage[place]]
    step = bisect_right([places[k] for k in steps], n) - 1
    start, end = steps[step], steps[step + 1]
    first = n == places[start]
    if mode == "model":
        return Span(start, start, first) if first else None
    if mode == "destination":
        # Pure noise has made no errors yet.
        return Span(end, end, first) if step else None
    oldest = min([n, *np.flatnonzero(table.weights[n]).tolist()])
    return Span(min(start, bisect_right(places, oldest) - 1), start, first)


def check_apart(grid: Grid, windows: Sequence[Window | None]) -> None:
    """ValueError if nodes could change places."""
    low, high = (
        [t if each is None else each.times[i] for t, each in zip(grid.time, windows, strict=True)]
        for i in (0, -1)
    )
    for k in range(grid.nfe):
        if low[k] <= high[k + 1]:
            raise ValueError(
                f"time_shift: the windows of nodes {k} and {k + 1}, at labels {grid.label[k]:.6g} "
                f"and {grid.label[k + 1]:.6g}, overlap: take a smaller window, or a cutoff above "
                f"nodes that are so near"
            )
