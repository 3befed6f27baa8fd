"""The tableau: a sampler as a lower-triangular table of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from scipy.linalg import solve_triangular

from ..schedules import Grid
from . import defects, files
from .basis import BASES, Basis, Float, convert
from .program import Step, compile_steps

# Entries below this share of their row are rounding left by a change of basis, not coefficients.
DUST = 1e-13


class Expanded(NamedTuple):
    """Every state in terms of the start: x[n] = start[n] x[0] + outputs[n] m + noise[n] z.

    `start` is [N + 1], `outputs` and `noise` are [N + 1, N] with zeros on and above the diagonal.
    """

    start: Float
    outputs: Float
    noise: Float


@dataclass(frozen=True, eq=False)
class Tableau:
    """x[n+1] = carry[n] x[n] + sum_{k<=n} weights[n,k] m[k] + sum_{k<=n} noise[n,k] z[k].

    `m[k]` is the network's output at node k in `basis` (x0, eps, v or flow) and `z[k]` standard
    normal noise. `carry` is float64 [N], `weights` and `noise` [N, N] lower triangular, for a
    `grid` of N + 1 nodes; arrays are copied and read-only. Dimensions that trail these broadcast
    against the state (per-sample or per-pixel coefficients). Any of the three may instead be a
    torch tensor, for gradients with respect to the table; such a table can be run, not analysed.

    Raises ValueError naming the row for a wrong shape, NaN or an entry above the diagonal.
    """

    grid: Grid
    carry: Float
    weights: Float
    noise: Float | None = None  # type: ignore[assignment]
    basis: Basis = "x0"
    name: str = "custom"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.grid.nfe
        if self.noise is None:
            object.__setattr__(self, "noise", np.zeros((n, n)))
        if self.basis not in BASES:
            raise ValueError(f"tableau {self.name}: basis {self.basis!r} is not one of {BASES}")
        for what, dims in (("carry", 1), ("weights", 2), ("noise", 2)):
            value = getattr(self, what)
            if not isinstance(value, torch.Tensor):
                value = np.array(value, dtype=np.float64)
                value.flags.writeable = False
                object.__setattr__(self, what, value)
            if tuple(value.shape[:dims]) != (n,) * dims:
                raise ValueError(
                    f"tableau {self.name}: {what} has shape {tuple(value.shape)}, the grid has {n} steps"
                )
            if isinstance(value, torch.Tensor):
                continue
            rows = value.reshape(n, -1)
            if not np.isfinite(rows).all():
                row = int((~np.isfinite(rows)).any(1).argmax())
                raise ValueError(f"tableau {self.name}: {what} row {row} is not finite")
            if dims == 2:
                upper = np.triu(np.any(value.reshape(n, n, -1) != 0, -1), 1)
                if upper.any():
                    row = int(upper.any(1).argmax())
                    raise ValueError(
                        f"tableau {self.name}: {what} row {row} uses entry {int(upper[row].argmax())}, "
                        f"which does not exist yet at that row (the table must be lower triangular)"
                    )
        object.__setattr__(self, "meta", dict(self.meta))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The rows as the executor reads them: live terms only, plain floats."""
        return compile_steps(self.grid.nodes, self.carry, self.weights, self.noise, self.basis)

    @property
    def nfe(self) -> int:
        """Counted network evaluations: nodes whose output some row uses."""
        return sum(step.call for step in self.steps)

    @property
    def stochastic(self) -> bool:
        """Whether any noise is drawn."""
        return any(step.draws for step in self.steps)

    def live(self) -> tuple[tuple[int, ...], ...]:
        """For each row, the outputs that later rows still need after it has run."""
        return tuple(step.live for step in self.steps)

    def expanded(self) -> Expanded:
        """All states as combinations of x[0], the outputs and the noises."""
        n = self.grid.nfe
        full = Expanded(np.ones(n + 1), np.zeros((n + 1, n)), np.zeros((n + 1, n)))
        for row, carry in enumerate(self.carry):
            full.start[row + 1] = carry * full.start[row]
            full.outputs[row + 1] = carry * full.outputs[row] + self.weights[row]
            full.noise[row + 1] = carry * full.noise[row] + self.noise[row]
        return full

    @classmethod
    def from_expanded(cls, grid: Grid, full: Expanded, **fields: Any) -> Self:
        """The rows of an expanded table: carry[n] = start[n+1] / start[n], and what remains.

        `fields` are the other arguments of the class.
        """
        below, above = full.start[:-1], full.start[1:]
        # Where a state has forgotten x[0], no multiple of it can bring x[0] back.
        if ((below == 0) & (above != 0)).any():
            raise ValueError("from_expanded: a state without x[0] is followed by one with it")
        carry = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        weights = full.outputs[1:] - carry[:, None] * full.outputs[:-1]
        noise = full.noise[1:] - carry[:, None] * full.noise[:-1]
        return cls(grid, carry, without_dust(weights, full), without_dust(noise, full), **fields)

    def in_basis(self, basis: Basis) -> Tableau:
        """The same sampler for outputs in another basis; exact algebra.

        With m = P x + Q m' at each node, states (A, B) become (I - B P)^-1 (A, B Q)
        (see `change_outputs`). Raises ValueError if the basis is undefined on a node.
        """
        if basis == self.basis:
            return self
        p, q = convert(self.basis, basis, self.grid.alpha[:-1], self.grid.sigma[:-1])
        full = change_outputs(self.expanded(), p, q)
        return Tableau.from_expanded(self.grid, full, basis=basis, name=self.name, meta=self.meta)

    def order_defects(self, orders: int = 5) -> Float:
        """How far each row is from exact on lam^j, j < orders; see `defects.order_defects`."""
        return defects.order_defects(self, orders)

    def row_orders(self, orders: int = 5, tolerance: float = 1e-9) -> NDArrayInt:
        """The order of each row: how many of its leading moment conditions hold; int [N]."""
        held = np.abs(self.order_defects(orders)) <= tolerance
        return np.cumprod(held, axis=1).sum(axis=1)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON (schema `fewstep.tableau`, version 1), atomically."""
        files.write(files.to_dict(self), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Tableau:
        """Read a table that `save` wrote; ValueError says what is wrong with a bad file."""
        return cls.from_dict(files.read(Path(path)), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values, for inlining in another file."""
        return files.to_dict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "tableau") -> Tableau:
        """Inverse of `to_dict`, with validation."""
        return cls(**files.from_dict(data, where))

    def renamed(self, name: str, **meta: Any) -> Tableau:
        """The same table under another name, with `meta` added to what it already says."""
        return replace(self, name=name, meta={**self.meta, **meta})

    def __repr__(self) -> str:
        return f"Tableau({self.name!r}, nfe={self.nfe}, basis={self.basis!r})"


NDArrayInt = np.ndarray[Any, np.dtype[np.int64]]


def change_outputs(full: Expanded, p: Float, q: Float) -> Expanded:
    """Express states in new outputs m', where m[k] = p[k] x[k] + q[k] m'[k].

    (A, B, C) becomes (I - B P)^-1 (A, B Q, C); I - B P is unit lower triangular.
    """
    n = len(p)
    system = np.eye(n + 1)
    system[:, :-1] -= full.outputs * p
    right = np.column_stack([full.start, full.outputs * q, full.noise])
    solved = solve_triangular(system, right, lower=True, unit_diagonal=True)
    start, outputs, noise = np.split(solved, [1, 1 + n], axis=1)
    return Expanded(start[:, 0], np.tril(outputs, -1), np.tril(noise, -1))


def without_dust(rows: Float, full: Expanded) -> Float:
    """Zero the entries that are only the rounding of a difference of states."""
    scale = np.maximum(np.abs(full.outputs[1:]).max(1), np.abs(full.outputs[:-1]).max(1))
    scale = np.maximum(scale, np.abs(rows).max(1))
    return np.where(np.abs(rows) <= DUST * scale[:, None], 0.0, rows)
