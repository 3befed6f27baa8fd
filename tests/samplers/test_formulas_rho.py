"""Builders in time and in sigma / alpha against their formulas, run step by step on symbols."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import fewstep
import numpy as np
import pytest
from fewstep import samplers as S

from .symbols import (
    GRIDS,
    LEVELS,
    Symbols,
    both_bases,
    every_grid,
    every_nfe,
    integral,
    singlestep,
)


def clock(where: str) -> Callable[[float], float]:
    """t(rho), the inverse of each law worked out by hand."""
    if where.startswith("vp"):
        slope = 20.0 - 0.1
        return lambda rho: (math.sqrt(0.01 + 2 * slope * math.log1p(rho**2)) - 0.1) / slope
    if where == "edm":
        return lambda rho: rho
    shift = 3.0 if where == "flow-min" else 1.0
    # sigma = rho / (1 + rho) = shift t / (1 + (shift - 1) t)
    return lambda rho: rho / (1 + rho) / (shift - (shift - 1) * rho / (1 + rho))


@pytest.mark.parametrize("where", sorted(set(GRIDS) - {"discrete"}))
@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
@pytest.mark.parametrize("variable", ["time", "rho"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_deis(where, nfe, variable, order):
    """Zhang and Chen 2023, eq. 15: the integral over rho of Lagrange polynomials in t or rho."""
    run = Symbols(GRIDS[where](nfe))
    rho = np.exp(-run.lam)
    at = run.grid.time if variable == "time" else rho
    read = clock(where) if variable == "time" else float
    for k in range(nfe):
        x = run.states[k]
        if np.isneginf(run.lam[k]):
            run.states.append(run.euler(k, x))
            continue
        # Regular into clean data: the order is kept there.
        used = [k - i for i in range(run.order(k, order, False))]
        weights = integral(lambda _: 1.0, at[used].tolist(), rho[k], rho[k + 1], read)
        y = x / run.alpha[k] + sum(
            w * run.output(i, "eps") for w, i in zip(weights, used, strict=True)
        )
        run.states.append(run.alpha[k + 1] * y)
    run.check(S.deis(run.grid, order, variable, lower_final=False), 1e-9)


@pytest.mark.parametrize("nfe", [1, 3, 10])
def test_deis_in_the_time_of_a_discrete_law(nfe):
    """lam(t) has a kink at every level: between two of them Gauss needs few points."""
    grid = fewstep.grid(LEVELS, nfe, "linspace", multistep=True)
    run = Symbols(grid)
    points, weights = np.polynomial.legendre.leggauss(12)
    for k in range(nfe):
        used = [k - i for i in range(min(3, k + 1))]
        total = np.zeros(len(used))
        # From level to level, and the last slot from level 0 to clean data at -1.
        for high, low in pairwise(np.arange(grid.time[k], grid.time[k + 1] - 1, -1.0)):
            rho = np.sqrt(1 / LEVELS.alpha([high, low]) ** 2 - 1)
            if low == -1:
                # The angle is linear in t there.
                t = -1 + (points + 1) / 2
                angle = (points + 1) / 2 * math.atan(rho[0])
                slope = math.atan(rho[0]) / np.cos(angle) ** 2
            else:
                t = (high + low) / 2 + points / 2
                share = t - low
                # log rho is linear in t.
                slope = rho[0] ** share * rho[1] ** (1 - share) * math.log(rho[0] / rho[1])
            for j in range(len(used)):
                others = [grid.time[i] for i in used if i != used[j]]
                value = np.prod([(t - o) / (grid.time[used[j]] - o) for o in others], axis=0)
                total[j] -= (weights / 2 * slope * value).sum()
        x = run.states[k] / run.alpha[k]
        x = x + sum(w * run.output(i, "eps") for w, i in zip(total, used, strict=True))
        run.states.append(run.alpha[k + 1] * x)
    run.check(S.deis(grid, 3, "time", lower_final=False), 1e-9)


@every_grid
@every_nfe
def test_ipndm(where, nfe):
    """Zhang and Chen 2023, appendix H.2."""
    run = Symbols(GRIDS[where](nfe))
    table = [[24], [36, -12], [46, -32, 10], [55, -59, 37, -9]]
    for k in range(nfe):
        x = run.states[k]
        if np.isneginf(run.lam[k]):
            run.states.append(run.euler(k, x))
            continue
        p = run.order(k, 4, False)
        e = sum(c / 24 * run.output(k - i, "eps") for i, c in enumerate(table[p - 1]))
        gain = run.alpha[k + 1] / run.alpha[k]
        run.states.append(gain * x + (run.sigma[k + 1] - gain * run.sigma[k]) * e)
    run.check(S.ipndm(run.grid), 1e-11)


RUNGE_KUTTA = {
    "heun": ([0, 1], [[], [1]], [1 / 2, 1 / 2]),
    "kutta3": ([0, 1 / 2, 1], [[], [1 / 2], [-1, 2]], [1 / 6, 4 / 6, 1 / 6]),
    "rk4": (
        [0, 1 / 2, 1 / 2, 1],
        [[], [1 / 2], [0, 1 / 2], [0, 0, 1]],
        [1 / 6, 2 / 6, 2 / 6, 1 / 6],
    ),
}


@every_grid
@every_nfe
@pytest.mark.parametrize("variable", ["nsr", "flow_sigma"])
@pytest.mark.parametrize("method", RUNGE_KUTTA)
def test_runge_kutta(where, nfe, variable, method):
    """y' = eps for y = x / alpha in rho, or y' = eps - x0 for y = x / (alpha + sigma) in sigma."""
    table = S.rho_rk(GRIDS[where](nfe), method, variable)
    steps, run = GRIDS[where](nfe), Symbols(table.grid)
    basis = "eps" if variable == "nsr" else "flow"
    unit = run.alpha if variable == "nsr" else run.alpha + run.sigma
    with np.errstate(divide="ignore"):
        clock = run.sigma / unit
    c, a, b = RUNGE_KUTTA[method]
    base = 0
    for n in range(nfe):
        plain = not np.isfinite(steps.lam[n + 1])
        if plain or (np.isneginf(steps.lam[n]) and variable == "nsr"):
            run.states.append(run.euler(base, run.states[base]))
            base += 1
            continue
        start, size = run.states[base] / unit[base], clock[base + len(c)] - clock[base]
        slopes = []
        for i in range(len(c)):
            # Where the stage is asked, then the stage after it.
            assert clock[base + i] == pytest.approx(clock[base] + c[i] * size, rel=1e-12)
            slopes.append(run.output(base + i, basis))
            row = a[i + 1] if i + 1 < len(c) else b
            y = start + size * sum(w * e for w, e in zip(row, slopes, strict=True))
            run.states.append(unit[base + i + 1] * y)
        base += len(c)
        assert run.lam[base] == pytest.approx(steps.lam[n + 1], abs=1e-12)
    run.check(table, 1e-11)


@every_grid
@every_nfe
@both_bases
@pytest.mark.parametrize("r", [0.5, 0.3])
def test_dpm2(where, nfe, basis, r):
    """Lu et al. 2022, "DPM-Solver", algorithm 4 (in eps): one stage at lam + r h in each step."""
    grid = GRIDS[where](nfe)
    table = S.dpm2(grid, r, basis)
    run = Symbols(table.grid)
    base = 0
    for n in range(grid.nfe):
        if not np.isfinite(grid.lam[n + 1] - grid.lam[n]):
            run.states.append(run.euler(base, run.states[base]))
            base += 1
            continue
        h = grid.lam[n + 1] - grid.lam[n]
        assert run.lam[base + 1] == pytest.approx(grid.lam[n] + r * h, abs=1e-10)
        for inner in (1, 2):
            run.states.append(singlestep(run, base, inner, 2, basis, "midpoint", "form"))
        base += 2
    run.check(table, 1e-11)
