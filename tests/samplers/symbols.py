"""Samplers run step by step on symbols: the independent side of test_formulas.

A reference is an ordinary sampler loop in the words of its paper. It is run on unit vectors (the
start, each x0 output, each noise), so that its states are the rows of the expanded table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature

import fewstep
import numpy as np
import pytest
from fewstep.samplers import Tableau
from fewstep.schedules import EDM, FlowMatching, Grid, VPDiscrete, VPLinear, betas
from scipy.integrate import quad

LEVELS = VPDiscrete(betas("scaled_linear", 1000, 0.00085, 0.012))
GRIDS: dict[str, Callable[[int], Grid]] = {
    "vp": lambda n: fewstep.grid(VPLinear(), n, "uniform", end="min"),
    "vp-clean": lambda n: fewstep.grid(VPLinear(), n, "karras"),
    "discrete": lambda n: fewstep.grid(LEVELS, n, "linspace", multistep=True),
    "edm": lambda n: fewstep.grid(EDM(), n, "karras", end="min"),
    "flow": lambda n: fewstep.grid(FlowMatching(), n, "uniform"),
    "flow-min": lambda n: fewstep.grid(FlowMatching(3.0), n, "uniform", end="min"),
}


def every_grid(test):
    """The test for all of `GRIDS`, one after the other: a thousand tests less to tell apart."""

    @wraps(test)
    def run(**given):
        for where in GRIDS:
            try:
                test(where=where, **given)
            except Exception as error:
                error.add_note(f"where = {where}")
                raise

    of_test = signature(test)
    rest = [each for name, each in of_test.parameters.items() if name != "where"]
    run.__signature__ = of_test.replace(parameters=rest)
    return run


every_nfe = pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10])
both_bases = pytest.mark.parametrize("basis", ["x0", "eps"])
# eps = (x - alpha x0) / sigma takes digits from both sides where a step gains much signal.
DIGITS = {"x0": 1e-12, "eps": 1e-10}
both_forms = pytest.mark.parametrize("form", ["midpoint", "heun"])


class Symbols:
    """One run: states as vectors over (x[0], x0 outputs, noises), and what formulas ask for."""

    def __init__(self, grid: Grid) -> None:
        n = grid.nfe
        unit = np.eye(1 + 2 * n)
        self.grid, self.n = grid, n
        self.data, self.z = unit[1 : 1 + n], unit[1 + n :]
        self.states = [unit[0]]
        self.alpha, self.sigma, self.lam = grid.alpha, grid.sigma, grid.lam

    def output(self, k: int, basis: str) -> np.ndarray:
        """What the network says at node k: x0 is a symbol, eps = (x - alpha x0) / sigma."""
        if basis == "x0":
            return self.data[k]
        if basis == "flow":
            return self.output(k, "eps") - self.data[k]
        return (self.states[k] - self.alpha[k] * self.data[k]) / self.sigma[k]

    def euler(self, k: int, x: np.ndarray) -> np.ndarray:
        """DDIM from x at node k: the only choice from pure noise and into clean data."""
        keep = self.sigma[k + 1] / self.sigma[k]
        return keep * x + (self.alpha[k + 1] - keep * self.alpha[k]) * self.data[k]

    def into_clean(self, k: int, x: np.ndarray, basis: str) -> np.ndarray:
        """The last step, from a corrected x: x0 itself, or what eps says about x."""
        if basis == "x0" or self.alpha[k] == 0:
            return self.data[k]
        return (x - self.sigma[k] * self.output(k, "eps")) / self.alpha[k]

    def infinite(self, k: int, base: int | None = None) -> bool:
        """Whether the step to node k + 1 starts at pure noise or ends in clean data."""
        return not np.isfinite(self.lam[k + 1] - self.lam[k if base is None else base])

    def order(self, k: int, wanted: int, lower_final: bool) -> int:
        """As much as asked, as there is history with some signal, and as the end allows."""
        history = k + 1 - int(np.isneginf(self.lam[0]))
        return max(min(wanted, history, self.n - k if lower_final else wanted), 1)

    def check(self, table: Tableau, tolerance: float = 1e-12) -> None:
        """Compare all states with those of a table, each relative to its largest coefficient."""
        assert table.grid.nfe == self.n
        full = table.in_basis("x0").expanded()
        ours = np.column_stack([full.start, full.outputs, full.noise])
        theirs = np.stack(self.states)
        error = np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)
        assert error.max() <= tolerance, error


def parts(run: Symbols, k: int, basis: str, base: int | None = None) -> tuple[float, float, float]:
    """(a, S, h) with x_t = a x + S (E1 m + ..) from node `base` (k) to node k + 1."""
    s = k if base is None else base
    h = run.lam[k + 1] - run.lam[s]
    if basis == "x0":
        return run.sigma[k + 1] / run.sigma[s], run.alpha[k + 1], h
    return run.alpha[k + 1] / run.alpha[s], -run.sigma[k + 1], h


def phi(basis: str, h: float) -> tuple[float, float, float]:
    """E1, E2, E3 = h phi_1, h phi_2, h phi_3 of h (eps) or -h (x0), as the papers write them."""
    if basis == "eps":
        e1 = math.expm1(h)
        return e1, e1 / h - 1, (e1 / h - 1) / h - 0.5
    e1 = -math.expm1(-h)
    return e1, 1 - e1 / h, 0.5 - (1 - e1 / h) / h


def lagrange(nodes: Sequence[float], j: int) -> Callable[[float], float]:
    """The polynomial that is 1 at nodes[j] and 0 at the others."""

    def value(u: float) -> float:
        return math.prod((u - node) / (nodes[j] - node) for i, node in enumerate(nodes) if i != j)

    return value


def integral(
    weigh: Callable[[float], float],
    nodes: Sequence[float],
    start: float,
    stop: float,
    read: Callable[[float], float] = float,
) -> list[float]:
    """int weigh(u) l_j(read(u)) du for every Lagrange polynomial of the nodes, by QUADPACK."""
    return [
        quad(
            lambda u, polynomial: weigh(u) * polynomial(read(u)),
            start,
            stop,
            args=(lagrange(nodes, j),),
            epsabs=1e-14,
            epsrel=1e-12,
            limit=400,
        )[0]
        for j in range(len(nodes))
    ]


def singlestep(run: Symbols, base: int, inner: int, size: int, basis: str, form: str, stage: str):
    """The state at node base + inner of a step of `size` nodes."""
    k = base + inner - 1
    a, scale, h = parts(run, k, basis, base)
    e1, e2, e3 = phi(basis, h)
    m = [run.output(base + i, basis) for i in range(inner)]
    r = [(run.lam[base + i] - run.lam[base]) / h for i in range(inner)]
    total = e1 * m[0]
    if inner == 2:
        # Inside a step of order 3 the paper always takes phi_2.
        exact = form == "heun" or (size == 3 and stage == "exact")
        total = total + (e2 if exact else e1 / 2) / r[1] * (m[1] - m[0])
    elif inner == 3 and form == "midpoint":
        total = total + e2 / r[2] * (m[2] - m[0])
    elif inner == 3:
        d1_0, d1_1 = (m[1] - m[0]) / r[1], (m[2] - m[0]) / r[2]
        d1 = (r[2] * d1_0 - r[1] * d1_1) / (r[2] - r[1])
        d2 = 2 * (d1_1 - d1_0) / (r[2] - r[1])
        total = total + e2 * d1 + e3 * d2
    return a * run.states[base] + scale * total
