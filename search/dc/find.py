"""Ratios for one solver on one grid: step by step, and all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from ...samplers import Denoiser, Tableau, compensate, sample
from ...samplers.fit import Trajectories
from ...samplers.ratios import FIRST
from ...samplers.sums import mix
from ...samplers.transforms import ORDER

# Where ratios are looked for: 0 is the time before, 2 as far on the other side.
BOUNDS = (0.0, 2.0)
# How near the best ratio is found in a step; a hundredth of it changes samples by nothing visible.
NEAR = 2e-3


@dataclass(frozen=True)
class Course:
    """What is compensated: a solver's table, the same without correctors, and how.

    Ratios before step `first`, counted from 0, stay 1: the published 2 leaves interpolations of
    order 2 only.
    """

    table: Tableau
    predictor: Tableau | None = None
    order: int = ORDER
    overwrite: bool = True
    first: int = FIRST

    def with_ratios(self, ratios: ArrayLike | Tensor) -> Tableau:
        """The compensated table."""
        return compensate(
            self.table,
            ratios,
            order=self.order,
            overwrite=self.overwrite,
            predictor=self.predictor,
        )


@dataclass
class Run:
    """A batch on its way: the state, the outputs so far, and where its teacher is."""

    denoiser: Denoiser
    x: Tensor
    outputs: list[Tensor]
    states: Sequence[Tensor]

    def asked(self, table: Tableau, n: int, x: Tensor) -> Tensor:
        """The network's output at node n in the table's basis."""
        row = table.steps[n]
        return mix(x, row.of_x, self.denoiser(x, row.node).to(x.dtype), row.of_x0)

    def moved(self, table: Tableau, n: int) -> Tensor:
        """The state after row n."""
        terms = zip(table.weights[n].tolist(), self.outputs, strict=False)
        return table.carry[n] * self.x + sum(weight * m for weight, m in terms)


@torch.no_grad()
def greedy(course: Course, batches: Sequence[Trajectories]) -> tuple[float, ...]:
    """The released search: each ratio brings the next state nearest to the teacher's.

    Ratio n minimises the mean square of x[n+1] - x*[n+1], where x[n+1] is corrected by the output
    at n + 1 as the solver does, with all ratios before fixed and those after at 1. Batches have the
    teacher's states at the nodes of the table. The one number of a step is found by a bounded
    search within 0 to 2, where the released code (Zhao et al. 2024, "DC-Solver") takes 40 steps of
    AdamW; a ratio that is no better than 1 is 1.
    """
    table = course.table
    grid, n = table.grid, table.grid.nfe
    ratios = np.ones(n)
    runs = [Run(b.denoiser, b.start(grid), [], b.states) for b in batches]
    for step in range(n):
        for run in runs:
            run.outputs.append(run.asked(table, step, run.x))
        if step >= course.first:
            ratios[step] = best(lambda ratio: miss(course, runs, ratios, step, ratio))  # noqa: B023
        after = course.with_ratios(ratios)
        for run in runs:
            run.x = run.moved(after, step)
    return tuple(ratios.tolist())


def best(loss: Any) -> float:
    """The ratio of the least loss between the bounds, or 1."""
    found = minimize_scalar(loss, bounds=BOUNDS, method="bounded", options={"xatol": NEAR})
    return float(found.x) if found.fun < loss(1.0) else 1.0


def miss(course: Course, runs: Sequence[Run], ratios: Any, step: int, ratio: float) -> float:
    """The mean square by which a step with this ratio misses the teacher's states."""
    tried = np.where(np.arange(len(ratios)) == step, ratio, ratios)
    table, total = course.with_ratios(tried), 0.0
    for run in runs:
        x = run.moved(table, step)
        # A state that the next row forgets is never corrected.
        if course.predictor is not None and step + 1 < len(ratios) and table.carry[step + 1]:
            plain = Course(course.predictor, None, course.order, course.overwrite)
            gap = np.subtract(table.weights, plain.with_ratios(tried).weights)[step + 1]
            gap = gap / table.carry[step + 1]
            outputs = [*run.outputs, run.asked(table, step + 1, x)]
            terms = zip(gap[: step + 2].tolist(), outputs, strict=True)
            x = x + sum(weight * m for weight, m in terms)
        total += float((x - run.states[step]).square().mean()) * len(x)
    return total / sum(len(run.x) for run in runs)


def joint(
    course: Course, batches: Sequence[Trajectories], start: Sequence[float]
) -> tuple[float, ...]:
    """All ratios at once: those of the least RMSE of the last state, from `start` on.

    By L-BFGS-B through the whole run, between 0 and 2; never worse on these samples than `start`.
    """
    first = min(course.first, len(start))
    fixed = [1.0] * first

    def value(free: Any) -> tuple[float, Any]:
        leaf = torch.tensor(free, dtype=torch.float64, requires_grad=True)
        ratios = torch.cat([torch.tensor(fixed, dtype=torch.float64), leaf])
        table, total = course.with_ratios(ratios), 0.0
        count = sum(len(batch.z) for batch in batches)
        slope = torch.zeros_like(leaf)
        for batch in batches:
            x = sample(batch.denoiser, table, batch.start(table.grid))
            loss = (x - batch.states[-1]).square().mean().double() * (len(x) / count)
            slope += torch.autograd.grad(loss, leaf, retain_graph=True)[0]
            total += loss.item()
        return total, slope.numpy()

    if first == len(start):
        return tuple(start)
    before = np.clip(start[first:], *BOUNDS)
    found = minimize(value, before, jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(before))
    return (*fixed, *found.x.tolist()) if found.fun < value(before)[0] else tuple(start)
