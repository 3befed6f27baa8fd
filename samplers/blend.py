"""Tables that depend on a number, such as the guidance scale: one between several."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..schedules import Grid
from ..schedules.base import Float
from .tableau import Tableau


class Coordinates(NamedTuple):
    """All numbers of a table in x0: nodes, and how far rows are from what constant x0 asks.

    `time` is [N + 1]; `label` [N + 1] what a node's label is more than that of its time; `carry`
    [N] and `weights` [N, N] what they are more than those of DDIM, sigma[n+1] / sigma[n] and, on
    the diagonal, alpha[n+1] - carry alpha[n]. Sums of these are tables, with rows that keep
    constants as exact as those that they are made of.
    """

    time: Float
    label: Float
    carry: Float
    weights: Float


def consistent(grid: Grid) -> tuple[Float, Float]:
    """The carry, and the sums of the rows in x0, that keep constant x0 exact: float64 [N] each."""
    carry = grid.sigma[1:] / grid.sigma[:-1]
    return carry, grid.alpha[1:] - carry * grid.alpha[:-1]


def coordinates(table: Tableau) -> Coordinates:
    """The numbers of a deterministic table in x0; ValueError if its grid knows no schedule."""
    grid = table.grid
    own = grid.require_schedule().label(grid.time)
    # A clean node, where no network is asked, may have none.
    said = np.isfinite(own)
    label = np.where(said, grid.label - np.where(said, own, 0), 0)
    carry, total = consistent(grid)
    return Coordinates(grid.time, label, table.carry - carry, table.weights - np.diag(total))


def with_coordinates(table: Tableau, numbers: Coordinates) -> Tableau:
    """The table with other numbers; ValueError where times cross."""
    grid = Grid.from_times(table.grid.require_schedule(), numbers.time)
    carry, total = consistent(grid)
    return replace(
        table,
        grid=replace(grid, label=grid.label + numbers.label),
        carry=carry + numbers.carry,
        weights=np.diag(total) + numbers.weights,
    )


def mixed(tables: Sequence[Tableau], shares: Sequence[float]) -> Tableau:
    """The sum of the tables' coordinates with `shares`, which add up to 1."""
    if len(tables) == 1:
        return tables[0]
    columns = zip(*(coordinates(table) for table in tables), strict=True)
    sums = (sum(s * part for s, part in zip(shares, column, strict=True)) for column in columns)
    return with_coordinates(tables[0], Coordinates(*sums))


def lagrange(knots: Sequence[float], at: float) -> tuple[float, ...]:
    """What each knot has in a polynomial's value at a number: shares that add up to 1."""
    return tuple(
        float(np.prod([(at - other) / (knot - other) for other in knots if other != knot]))
        for knot in knots
    )


@dataclass(frozen=True, eq=False)
class Blend:
    """Tables at some guidance scales, and by a polynomial through them at all between.

    Of a table that is for any scale there is one, and no scale. Raises ValueError unless there is
    otherwise a table for each of `scales`, which rise.
    """

    scales: tuple[float, ...]
    tables: tuple[Tableau, ...]

    def __post_init__(self) -> None:
        if len(self.tables) != max(len(self.scales), 1):
            raise ValueError(f"{len(self.tables)} tables for {len(self.scales)} scales")
        if any(b <= a for a, b in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales must rise, not {self.scales}")
        if len({table.nfe for table in self.tables}) > 1:
            raise ValueError("the tables of a blend take the same number of evaluations")
        if len(self.tables) > 1:
            for table in self.tables:
                if table.basis != "x0" or table.stochastic:
                    raise ValueError(f"{table!r}: only deterministic tables in x0 can be mixed")
                if table.bias.any():
                    raise ValueError(f"{table!r} has a bias, and only tables without can be mixed")
                if table.grid.require_schedule() != self.tables[0].grid.schedule:
                    raise ValueError("the tables of a blend are of one noise schedule")

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return self.tables[0].nfe

    def at(self, scale: float) -> Tableau:
        """The table of a scale; beyond those it was learned at, that of the nearest, warned of."""
        if not self.scales:
            return self.tables[0]
        low, high = self.scales[0], self.scales[-1]
        near = min(max(scale, low), high)
        if near != scale:
            reach = " to ".join(f"{each:g}" for each in sorted({low, high}))
            warnings.warn(
                f"guidance {scale:g} is not {reach}, which {self.tables[0].name} was learned for: "
                f"the table of {near:g} is taken",
                stacklevel=2,
            )
        return mixed(self.tables, lagrange(self.scales, near))
