"""A table fitted in closed form to the trajectories of a better sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..schedules import Grid
from .executor import State, sample
from .recall import Denoiser
from .registry import build
from .tableau import Tableau

# Steps of the teacher within one of the student's.
SUBSTEPS = 8
TEACHER = "unipc-3"
# Which rows need not keep constant x0 exact.
Free = Literal["none", "inner", "all"]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Some samples: their denoiser, their noise z, and where a teacher is at nodes 1 to N.

    `z` is [B, ...] of unit variance, `states` N tensors like it. A run begins at sigma[0] z; the
    teacher may have begun earlier. Where several tables are learned at once, the one that is run
    here has their numbers with `shares` (see `blend.mixed`).
    """

    denoiser: Denoiser
    z: Tensor
    states: Sequence[Tensor]
    shares: tuple[float, ...] = (1.0,)

    def start(self, grid: Grid) -> Tensor:
        """The state at node 0 of a grid: noise alone."""
        return self.z * float(grid.sigma[0])


def fit(
    denoiser: Denoiser,
    grid: Grid,
    x: Tensor,
    *,
    base: str = TEACHER,
    substeps: int = SUBSTEPS,
    ridge: float = 1e-6,
    free: Free = "inner",
) -> Tableau:
    """The table on `grid` whose states are nearest to a teacher's, row by row; no gradients.

    Row n minimises, over c and w and summed over all samples and pixels,

        |c x[n] + sum_{k<=n} w[k] m[k] - x*[n+1]|^2,   m[k] = denoiser(x[k], node k),

    along its own trajectory x[0], .., x[n], where x* is the teacher's: `base` with `substeps` steps
    in place of one. A row has few numbers and the equations are linear, so that a hundred samples
    are enough, and what it costs are the network evaluations: B N (substeps + 1).

    A row that is not `free` keeps constant x0 exact, as all rows of every solver do: c =
    sigma[n+1] / sigma[n], and the weights add up to alpha[n+1] - c alpha[n], which leaves n of its
    n + 2 numbers. "inner" leaves all rows free but the last, so that what the network is sure of
    (a background) comes out as it says; "all" is nearer in the mean square, and paler; "none".

    Parameters
    ----------
    denoiser
        Any callable (x, node) -> x0, see `denoiser`; with guidance or without.
    grid
        Of the table; it must know its schedule, for the teacher's nodes in between.
    x
        States at node 0, [B, ...]; see `noise`.
    base
        The solver of the teacher, and, on `grid`, what the fit is drawn to by `ridge`, relative to
        each feature's power.

    The family is that of Shaul et al. 2024, "Bespoke Non-Stationary Solvers", proposition 3.1;
    there and in Oganov et al. 2025, "Generalized Adversarial Solver", gradient descent finds the
    numbers. Raises ValueError for a stochastic base, and a grid without a schedule, or with stages.
    """
    course = teach(build(base, refined(grid, substeps)), denoiser, x / float(grid.sigma[0]))
    batch = replace(course, states=course.states[substeps - 1 :: substeps])
    (table,) = fit_rows([batch], grid, base=base, ridge=ridge, free=free).tables
    return table


@torch.no_grad()
def teach(table: Tableau, denoiser: Denoiser, z: Tensor) -> Trajectories:
    """The trajectories of a batch with noise z by `table`, which must draw none itself.

    Its states are those of the student's own nodes: ValueError for solvers with stages in a step.
    """
    if table.grid.stage.any():
        raise ValueError(f"a teacher must take one evaluation a step, and {table.name} has stages")
    if table.stochastic:
        raise ValueError(f"a teacher must be deterministic, and {table.name} draws noise")
    states: list[Tensor] = []

    def record(state: State, x0: Tensor | None) -> None:
        states.append(state.x)

    sample(denoiser, table, z * float(table.grid.sigma[0]), callback=record)
    return Trajectories(denoiser, z, states)


def refined(grid: Grid, substeps: int) -> Grid:
    """The grid with every step cut into `substeps`, evenly in time."""
    if substeps < 1:
        raise ValueError(f"substeps must be at least 1, not {substeps}")
    if grid.stage.any():
        raise ValueError("a grid with stages inside its steps cannot be cut further")
    parts = np.linspace(0, 1, substeps, endpoint=False)
    times = grid.time[:-1, None] + parts * np.diff(grid.time)[:, None]
    whole = np.append(times.reshape(-1), grid.time[-1])
    return Grid.from_times(grid.require_schedule(), whole)


class Fitted(NamedTuple):
    """Tables, and the last state of each batch, where fitting has led it."""

    tables: list[Tableau]
    ends: list[Tensor]


def fit_rows(
    batches: Sequence[Trajectories],
    grid: Grid,
    *,
    base: str = TEACHER,
    ridge: float = 1e-6,
    free: Free = "inner",
) -> Fitted:
    """The rows of `fit` from any number of batches: a table for each of their shares, at once."""
    start = plain(base, grid)
    n, many = grid.nfe, len(batches[0].shares)
    carry, weights = np.zeros((many, n)), np.zeros((many, n, n))
    shares = [torch.tensor(batch.shares, dtype=torch.float64) for batch in batches]
    features = [[batch.start(grid)] for batch in batches]
    for row in range(n):
        prior = torch.tensor([start.carry[row], *start.weights[row, : row + 1]])
        span = changes(row, is_free(row, n, free))
        size = many * span.shape[1]
        gram, right = torch.zeros(size, size).double(), torch.zeros(size).double()
        for known, batch, share in zip(features, batches, shares, strict=True):
            with torch.no_grad():
                known.append(batch.denoiser(known[0], grid.nodes[row]).to(known[0].dtype))
            columns = torch.stack([each.double().flatten() for each in known])
            target = batch.states[row].double().flatten() - prior.to(columns) @ columns
            square, towards = (columns @ columns.T).cpu(), (columns @ target).cpu()
            gram += torch.kron(torch.outer(share, share), span.T @ square @ span)
            right += torch.kron(share, span.T @ towards)
        found = prior + solved(gram, right, ridge).reshape(many, -1) @ span.T
        carry[:, row], weights[:, row, : row + 1] = found[:, 0], found[:, 1:]
        for known, share in zip(features, shares, strict=True):
            own = (share @ found).tolist()
            known[0] = sum((c * each for c, each in zip(own, known, strict=True)))
    count = sum(len(batch.z) for batch in batches)
    meta = {"fitted": {"base": base, "samples": count}}
    tables = [
        Tableau(grid, c, w, name=f"fitted-{n}", meta=meta)
        for c, w in zip(carry, weights, strict=True)
    ]
    return Fitted(tables, [known[0] for known in features])


def plain(base: str, grid: Grid) -> Tableau:
    """A solver on exactly these nodes, in x0; ValueError for one with stages, or that draws."""
    table = build(base, grid).in_basis("x0")
    if table.grid.nfe != grid.nfe or table.stochastic:
        raise ValueError(f"{base} takes other nodes than these, or draws noise: no base to add to")
    return table


def is_free(row: int, rows: int, free: Free) -> bool:
    """Whether a row is among the free ones."""
    return free == "all" or (free == "inner" and row < rows - 1)


def changes(row: int, free: bool) -> Tensor:
    """What may be added to (c, w[0], .., w[row]): columns [row + 2, P]; P = row keeps their sum."""
    if free:
        return torch.eye(row + 2, dtype=torch.float64)
    span = torch.zeros(row + 2, row, dtype=torch.float64)
    span[1:-1] = torch.eye(row)
    span[-1] = -1
    return span


def solved(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """The minimum of d^T gram d - 2 right d + ridge d^T diag(gram) d."""
    scale = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
    even = gram / scale / scale[:, None] + ridge * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(even, right / scale) / scale
