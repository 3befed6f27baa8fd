"""The tableau: a sampler as a lower-triangular table of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..schedules import Grid
from ..schedules.base import Float, Form, alpha_sigma
from ..storage import write_json
from . import defects, files
from .basis import BASES, Basis, convert
from .program import Step, compile_steps
from .relations import Rows, change_outputs, eliminate, trailing


class Expanded(NamedTuple):
    """Every state by the start: x[n] = start[n] x[0] + outputs[n] m + noise[n] z + bias[n].

    `start` is [N + 1], `outputs` and `noise` are [N + 1, N] with zeros on and above the diagonal,
    `bias` is [N + 1] or, for an image, [N + 1, ..].
    """

    start: Float
    outputs: Float
    noise: Float
    bias: Float


# The arrays of a tableau with the number of their dimensions that do not broadcast.
DIMENSIONS = {"carry": 1, "weights": 2, "noise": 2, "bias": 1}


class TooFewEvaluations(ValueError):
    """Nothing of a solver fits into the network evaluations that were asked for."""


@dataclass(frozen=True, eq=False)
class Tableau:
    """x[n+1] = carry[n] x[n] + sum_{k<=n} weights[n,k] m[k] + sum_{k<=n} noise[n,k] z[k] + bias[n].

    `m[k]` is the network's output at node k in `basis` (x0, eps, v or flow) and `z[k]` standard
    normal noise. `carry` and `bias` are float64 [N], `weights` and `noise` [N, N] lower triangular,
    for a `grid` of N + 1 nodes; arrays are copied and read-only. Dimensions that trail these
    broadcast against the state (per-sample or per-pixel coefficients, a bias that is an image). Any
    of the four may instead be a torch tensor, for gradients with respect to the table; such a table
    can be run, not analysed.

    Raises ValueError naming the row for a wrong shape, NaN or an entry above the diagonal.
    """

    grid: Grid
    carry: Float
    weights: Float
    noise: Float = field(default_factory=lambda: np.zeros((0, 0)))
    basis: Basis = "x0"
    name: str = "custom"
    meta: Mapping[str, Any] = field(default_factory=dict)
    bias: Float = field(default_factory=lambda: np.zeros(0))
    # The rows as the executor reads them: live terms only, plain floats.
    steps: tuple[Step, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = self.grid.nfe
        if len(self.noise) == 0:
            object.__setattr__(self, "noise", np.zeros((n, n)))
        if len(self.bias) == 0:
            object.__setattr__(self, "bias", np.zeros(n))
        if self.basis not in BASES:
            raise ValueError(f"tableau {self.name}: basis {self.basis!r} is not one of {BASES}")
        for what, dims in DIMENSIONS.items():
            label = f"tableau {self.name}: {what}"
            object.__setattr__(self, what, checked(getattr(self, what), n, dims, label))
        object.__setattr__(self, "meta", dict(self.meta))
        # Here and not on first use, which may be inside a compiled or captured run.
        steps = compile_steps(self.grid.nodes, *self.rows(), self.basis)
        object.__setattr__(self, "steps", steps)

    def _arguments(self) -> tuple[Any, ...]:
        return (
            *(self.grid, self.carry, self.weights, self.noise),
            *(self.basis, self.name, self.meta, self.bias),
        )

    @property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what of it is images, or per sample; none for plain numbers."""
        pairs = zip(self.rows(), DIMENSIONS.values(), strict=True)
        return tuple([tuple(each.shape[dims:]) for each, dims in pairs if each.ndim > dims])

    def rows(self) -> Rows:
        """The four arrays."""
        return Rows(self.carry, self.weights, self.noise, self.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its arguments, so that copies are read-only and checked, too.
        return type(self), self._arguments()

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

    def numeric(self) -> Tableau:
        """The table in plain numbers, tensors detached; ValueError for per-sample coefficients.

        Only the bias may be an image.
        """
        table = self.detached()
        if (table.carry.ndim, table.weights.ndim, table.noise.ndim) != (1, 2, 2):
            raise ValueError(
                f"tableau {self.name}: this is for plain numbers, carry [N] and weights and noise "
                f"[N, N]; its coefficients have further dimensions"
            )
        return table

    def detached(self) -> Tableau:
        """The table with arrays for tensors."""
        if not any(isinstance(each, torch.Tensor) for each in self.rows()):
            return self
        return replace(self, **Rows(*map(detached, self.rows()))._asdict())

    def expanded(self) -> Expanded:
        """All states as combinations of x[0], the outputs and the noises."""
        table, n = self.numeric(), self.grid.nfe
        full = Expanded(
            np.ones(n + 1),
            np.zeros((n + 1, n)),
            np.zeros((n + 1, n)),
            np.zeros((n + 1, *table.bias.shape[1:])),
        )
        for row, carry in enumerate(table.carry):
            full.start[row + 1] = carry * full.start[row]
            full.outputs[row + 1] = carry * full.outputs[row] + table.weights[row]
            full.noise[row + 1] = carry * full.noise[row] + table.noise[row]
            full.bias[row + 1] = carry * full.bias[row] + table.bias[row]
        return full

    @classmethod
    def from_expanded(cls, grid: Grid, full: Expanded, **fields: Any) -> Self:
        """The rows of an expanded table; `fields` are the other arguments of the class.

        Raises ValueError if a state without x[0] is followed by one with it.
        """
        states = np.zeros_like(full.outputs[1:])
        states[:, 0] = full.start[1:]
        rows = eliminate(states, full.outputs[1:], full.noise[1:], bias=full.bias[1:])
        return cls(grid, **rows._asdict(), **fields)

    def in_basis(self, basis: Basis) -> Tableau:
        """The same sampler for outputs in another basis; exact algebra.

        Outputs are replaced by m = P x + Q m' at each node (see `change_outputs`), also where
        coefficients are per pixel. Raises ValueError if the basis is undefined on a node.
        """
        if basis == self.basis:
            return self
        if any(isinstance(each, torch.Tensor) for each in self.rows()):
            raise ValueError(
                f"tableau {self.name}: a change of basis would lose the gradients of its tensors; "
                f"call numeric() first if that is meant"
            )
        p, q = convert(self.basis, basis, self.grid.alpha[:-1], self.grid.sigma[:-1])
        return replace(self, basis=basis, **change_outputs(self.rows(), p, q)._asdict())

    def in_form(self, form: Form) -> Tableau:
        """The same sampler on states in another form: x' = u x with alpha' = u alpha.

        Exact algebra: carry' = carry u[n+1] / u[n]; all else gains u[n+1]. Outputs in x0
        and eps are the same in any form; tables of others are brought to x0 first. The new grid
        keeps its labels and times, and has no schedule, because that has another form. Raises
        ValueError if a node is pure noise (alpha = 0) and only one of the forms can say so.
        """
        table = (self if self.basis == "eps" else self.in_basis("x0")).detached()
        alpha, sigma = alpha_sigma(self.grid.lam, form)
        with np.errstate(invalid="ignore"):
            unit = np.where(alpha > 0, alpha / self.grid.alpha, sigma / self.grid.sigma)
        if not np.isfinite(unit).all():
            raise ValueError(
                f"tableau {self.name}: node {int((~np.isfinite(unit)).argmax())} is pure noise, "
                f"which has no form {form!r}"
            )
        grid = replace(self.grid, alpha=alpha, sigma=sigma, schedule=None)

        def times(values: Float, factor: Float) -> Float:
            return values * trailing(factor, values.ndim - 1)

        return replace(
            table,
            grid=grid,
            carry=times(table.carry, unit[1:] / unit[:-1]),
            weights=times(table.weights, unit[1:]),
            noise=times(table.noise, unit[1:]),
            bias=times(table.bias, unit[1:]),
        )

    def tail(self, start: int) -> Tableau:
        """The rows from `start` on, for a run that begins at that node.

        What rows take of outputs from before is given to the first output there is, which keeps
        constant x0 exact; noise from before is drawn afresh there, with the same variance. A run
        cannot begin inside a step, at a stage: ValueError.
        """
        n = self.grid.nfe
        if not 0 <= start < n or self.grid.stage[start]:
            raise ValueError(
                f"tableau {self.name}: a run cannot begin at node {start} of {n}"
                + (", which is a stage inside a step" if 0 <= start < n else "")
            )
        if start == 0:
            return self
        table = self.detached()
        weights, noise = table.weights[start:, start:].copy(), table.noise[start:, start:].copy()
        weights[:, 0] += table.weights[start:, :start].sum(1)
        noise[:, 0] = np.hypot(noise[:, 0], np.sqrt(np.square(table.noise[start:, :start]).sum(1)))
        return replace(
            table,
            grid=self.grid.tail(start),
            carry=table.carry[start:],
            weights=weights,
            noise=noise,
            bias=table.bias[start:],
        )

    def order_defects(self, orders: int = 5) -> Float:
        """How far each row is from exact on lam^j, j < orders; see `defects.order_defects`.

        Outputs in eps are tested as eps, all others and those of stochastic tables as x0. What a
        bias adds is left out.
        """
        basis: Basis = "eps" if self.basis == "eps" and not self.stochastic else "x0"
        table = self.numeric().in_basis(basis)
        return defects.order_defects(table.grid, table.carry, table.weights, basis, orders)

    def row_orders(self, orders: int = 5, tolerance: float = 1e-9) -> NDArray[np.int64]:
        """The order of each row: how many of its leading moment conditions hold; int [N]."""
        held = np.abs(self.order_defects(orders)) <= tolerance
        return np.cumprod(held, axis=1).sum(axis=1)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON (schema `fewstep.tableau`), atomically."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Tableau:
        """Read a table that `save` wrote; ValueError says what is wrong with a bad file."""
        return cls.from_dict(files.read(Path(path)), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values, for inlining in another file."""
        return files.to_dict(*self.numeric()._arguments())

    @classmethod
    def from_dict(cls, data: Any, where: str = "tableau") -> Tableau:
        """Inverse of `to_dict`, with validation."""
        return cls(**files.from_dict(data, where))

    def renamed(self, name: str, **meta: Any) -> Tableau:
        """The same table under another name, with `meta` added to what it already says."""
        return replace(self, name=name, meta={**self.meta, **meta})

    def __repr__(self) -> str:
        return f"Tableau({self.name!r}, nfe={self.nfe}, basis={self.basis!r})"


def checked(value: Any, n: int, dims: int, label: str) -> Any:
    """A read-only float64 copy (tensors as they are), or ValueError that names the row."""
    tensor = isinstance(value, torch.Tensor)
    value = value if tensor else np.array(value, dtype=np.float64)
    if tuple(value.shape[:dims]) != (n,) * dims:
        raise ValueError(f"{label} has shape {tuple(value.shape)}, but the grid has {n} steps")
    if tensor:
        return value
    value.flags.writeable = False
    finite = np.isfinite(value)
    if not finite.all():
        bad = ~finite.reshape(n, -1).all(1)
        raise ValueError(f"{label} row {int(bad.argmax())} is not finite")
    if dims == 2 and value.any():
        above = np.triu(np.any(value.reshape(n, n, -1) != 0, -1), 1)
        if above.any():
            row = int(above.any(1).argmax())
            raise ValueError(
                f"{label} row {row} uses entry {int(above[row].argmax())}, which does not exist "
                f"yet at that row (the table must be lower triangular)"
            )
    return value


def detached(value: Any) -> Float:
    """The numbers of an array or a tensor."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
