"""Discrete samplers by name: builders of jump tables, and where they ask the network.

A builder is a function (kernel, noise, times) -> `JumpTable`, differentiable in the times [N + 1].
With R_v = rate(t) prior(x) s_v at node t and dt the length of a step, the rows are

    euler           h = dt R, a jump with probability min(H, 1)
    exp-euler       h = dt R, with 1 - e^-H
    tau-leaping     h = dt R, with H e^-H
    tweedie         the law of x[n+1] given x[n] if other sites were not to move
    theta-rk-2      x* after theta dt, then from x: h = dt ((1 - 1 / 2 theta) R + R* / 2 theta)_+
    theta-trapezoidal   x* after theta dt, then from x*: h = (1 - theta) dt (a1 R* - a2 R)_+

with a1 = 1 / (2 theta (1 - theta)) and a2 = a1 - 1. A row that ends at clean data is one of
Tweedie's, whatever the method: the rates of the others have no bound there.

The trapezoidal method is of second order as long as a1 R* - a2 R is positive; where it is not, the
clamp leaves a small error of first order. RK-2, of second order in the paper, is of first order in
the law of a sequence: its second stage starts over from x, so that jumps on the way to x* do not
carry on from there.

A step of two stages spans two of the given intervals, and its inner node replaces the one between:
all methods cost N evaluations on N + 1 nodes. An interval that is left over is a row of Tweedie's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .kernel import Kernel
from .noise import Noise, double
from .table import JumpTable, Law

Spacing = Literal["trailing", "sedd"]


def nodes(nfe: int, spacing: Spacing = "trailing") -> Tensor:
    """Times [nfe + 1] from 1 to 0 of `nfe` network evaluations, the last of which denoises.

    "trailing" is even. "sedd" steps evenly down to 1e-5 and denoises there, as SEDD's code does,
    where next to nothing is left for the last evaluation to do.
    """
    if nfe < 1:
        raise ValueError(f"a sampler needs at least 1 evaluation, got {nfe}")
    if spacing == "trailing":
        return 1 - torch.arange(nfe + 1, dtype=torch.float64) / nfe
    if spacing != "sedd":
        raise ValueError(f"unknown spacing {spacing!r}; choose trailing or sedd")
    if nfe == 1:
        raise ValueError("the spacing sedd needs at least 2 evaluations; use trailing for 1")
    return torch.cat([torch.linspace(1, 1e-5, nfe, dtype=torch.float64), torch.zeros(1)])


class Row(NamedTuple):
    """A row from state `anchor`: weights and spread by the index of the score."""

    anchor: int
    weights: Mapping[int, Tensor]
    spread: Mapping[int, Tensor] = {}
    law: Law = "linear"


# Rows of one evaluation: (kernel, noise, times, n) -> the row from node n to the next.
Rule = Callable[[Kernel, Noise, Tensor, int], Row]


def leap(kernel: Kernel, noise: Noise, time: Tensor, n: int, *, law: Law) -> Row:
    """h = dt R."""
    return Row(n, {n: noise.rate(time[n]) * (time[n] - time[n + 1])}, law=law)


def tweedie_row(kernel: Kernel, noise: Noise, time: Tensor, n: int) -> Row:
    """P_v = (e^(-dsb Q) s)_v (e^(dsb Q))(x, v) with dsb the noise of the step (SEDD, theorem 4.2).

    Absorbing: s_v (e^dsb - 1). Uniform: (e^dsb s_v - (e^dsb - 1) mean(s)) (1 - e^-dsb) / states.
    """
    left = noise.total(time[n + 1]) if time[n + 1] > 0 else 0.0
    step = noise.total(time[n]) - left
    push = torch.expm1(step)
    # The generator of an absorbing kernel has nothing to spread: no token is made by noise.
    spread = {n: push * -torch.expm1(-step)} if kernel.law()[: kernel.states].any() else {}
    return Row(n, {n: push}, spread)


def table(kernel: Kernel, noise: Noise, time: Tensor, rows: Sequence[Row]) -> JumpTable:
    """The table of these rows."""
    n = len(rows)
    weights, spread = (torch.zeros((n, n), dtype=torch.float64) for _ in range(2))
    for k, row in enumerate(rows):
        for square, terms in ((weights, row.weights), (spread, row.spread)):
            for i, value in terms.items():
                square[k, i] = value
    return JumpTable(
        *(kernel, noise, time, weights, spread),
        anchor=tuple(row.anchor for row in rows),
        law=[row.law for row in rows],
    )


def one_stage(rule: Rule, kernel: Kernel, noise: Noise, times: Tensor) -> JumpTable:
    """Every row by one rule, and the last one to clean data by Tweedie's."""
    time = double(times)
    n = len(time) - 1
    inner = n - 1 if time[-1] == 0 else n
    rows = [rule(kernel, noise, time, k) for k in range(inner)]
    rows += [tweedie_row(kernel, noise, time, k) for k in range(inner, n)]
    return table(kernel, noise, time, rows)


def two_stage(
    combine: Callable[[float], tuple[int, float, float]],
    kernel: Kernel,
    noise: Noise,
    times: Tensor,
    *,
    theta: float = 0.5,
) -> JumpTable:
    """Steps of two stages over pairs of intervals.

    Ren et al. 2025, "Fast Solvers for Discrete Diffusion Models: Theory and Applications of
    High-Order Algorithms". combine(theta) says whether the second stage jumps from the first state
    (0) or from the middle (1), and its weights of dt R and dt R*.
    """
    if not 0 < theta < 1:
        raise ValueError(f"theta must be between 0 and 1, got {theta}")
    time = list(double(times).unbind())
    n = len(time) - 1
    start, first, second = combine(theta)
    rows: list[Row] = []
    for k in range(0, (n - 1 if time[-1] == 0 else n) - 1, 2):
        step = time[k] - time[k + 2]
        time[k + 1] = time[k] - theta * step
        rate, inner = noise.rate(time[k]) * step, noise.rate(time[k + 1]) * step
        # Of Poisson jumps to tokens at constant rates only the last one shows: 1 - e^-H.
        rows.append(Row(k, {k: theta * rate}, law="exponential"))
        both = {k: first * rate, k + 1: second * inner}
        rows.append(Row(k + start, both, law="exponential"))
    joined = torch.stack(time)
    rows += [tweedie_row(kernel, noise, joined, k) for k in range(len(rows), n)]
    return table(kernel, noise, joined, rows)


def rk2(theta: float) -> tuple[int, float, float]:
    """theta-RK-2: from the first state."""
    return 0, 1 - 1 / (2 * theta), 1 / (2 * theta)


def trapezoidal(theta: float) -> tuple[int, float, float]:
    """theta-trapezoidal: from the middle, an extrapolation of the rates."""
    a1 = 1 / (2 * theta * (1 - theta))
    return 1, -(1 - theta) * (a1 - 1), (1 - theta) * a1


@dataclass(frozen=True)
class Solver:
    """A builder: `order` is the measured order of the final law in the step."""

    name: str
    order: int
    description: str
    builder: Callable[..., JumpTable]

    def __call__(self, kernel: Kernel, noise: Noise, times: Tensor, **options: Any) -> JumpTable:
        """The table on these times; `options` are those of the builder, such as theta."""
        made = self.builder(kernel, noise, times, **options)
        return made.renamed(self.name, **({"options": options} if options else {}))


def euler_rule(law: Law) -> Callable[..., JumpTable]:
    """The builder of plain leaps with this law."""
    return partial(one_stage, partial(leap, law=law))


CATALOGUE: tuple[Solver, ...] = (
    Solver("euler", 1, "constant rates, jump with min(H, 1)", euler_rule("linear")),
    Solver("exp-euler", 1, "constant rates, jump with 1 - e^-H", euler_rule("exponential")),
    Solver("tau-leaping", 1, "Poisson jumps, two are none: H e^-H", euler_rule("single")),
    Solver("tweedie", 1, "exact if other sites do not move", partial(one_stage, tweedie_row)),
    Solver("theta-rk-2", 1, "midpoint rates from the start", partial(two_stage, rk2)),
    Solver("theta-trapezoidal", 2, "extrapolated rates", partial(two_stage, trapezoidal)),
)
SOLVERS: dict[str, Solver] = {solver.name: solver for solver in CATALOGUE}


def solver(name: str) -> Solver:
    """The solver of that name; ValueError suggests names."""
    if name not in SOLVERS:
        close = get_close_matches(name.lower(), SOLVERS, n=3, cutoff=0.5) or list(SOLVERS)
        raise ValueError(f"unknown discrete solver {name!r}; choose one of {', '.join(close)}")
    return SOLVERS[name]


def build(name: str, kernel: Kernel, noise: Noise, times: Tensor, **options: Any) -> JumpTable:
    """The table of a named solver on times [N + 1] (see `nodes`), with nfe = N.

    Raises ValueError for an unknown name or times that do not descend, and TypeError for an option
    that the builder does not have.
    """
    return solver(name)(kernel, noise, times, **options)
