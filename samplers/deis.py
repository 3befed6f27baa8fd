"""DEIS: polynomials for eps in time or in rho = sigma / alpha; and iPNDM, its uniform cousin."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..schedules import Grid
from ..schedules.base import Float
from .kernels import kernel
from .multistep import Moments, Orders, polynomial_weights, step_orders
from .rows import tableau
from .tableau import Tableau

Variable = Literal["time", "rho", "index"]

# Gauss-Legendre nodes between two knots of a step. They integrate rho(t) to rounding, but for a
# step from a few 1e-4 below pure noise, where rho has a pole (1e-5 at time 0.9999 of VPCosine).
QUADRATURE = 64


def deis(
    grid: Grid, order: Orders = 3, variable: Variable = "time", lower_final: bool = True
) -> Tableau:
    """DEIS-AB with `order` outputs: x_t / alpha_t = x_s / alpha_s + int eps drho.

    eps is a polynomial in `variable`: "time" is tAB, "rho" is rhoAB (Zhang and Chen 2023, "Fast
    Sampling of Diffusion Models with Exponential Integrator", eq. 15; their ab_order is order - 1).
    "index" treats the nodes as if they were uniform in rho: iPNDM. The log-rho form is
    `adams(prediction="eps")`. Without `lower_final` a step into clean data keeps its order.
    """
    linear = kernel(grid, "eps")
    counts = step_orders(grid, order, lower_final, regular_end=True)
    rule: Moments
    match variable:
        case "time":
            coordinate, rule = grid.time, time_moments(grid, linear.first)
        case "rho":
            coordinate, rule = grid.nsr, uniform_moments(linear.first)
        case "index":
            coordinate, rule = np.arange(grid.nfe + 1.0), uniform_moments(linear.first)
        case _:
            raise ValueError(f"deis: variable must be 'time', 'rho' or 'index', got {variable!r}")
    weights = polynomial_weights(linear, coordinate, rule, counts)
    return tableau(grid, "eps", linear.carry, weights, name=f"deis-{variable}")


def ipndm(grid: Grid, order: Orders = 4, lower_final: bool = False) -> Tableau:
    """iPNDM: Adams-Bashforth weights of a uniform grid, times alpha_t (rho_t - rho_s), on any grid.

    Orders 1 to 4 give (1), (3, -1) / 2, (23, -16, 5) / 12, (55, -59, 37, -9) / 24 (Zhang and Chen
    2023, appendix H.2; Liu et al. 2022). Order 2 on any
    smooth grid, however many outputs it uses.
    """
    return deis(grid, order, "index", lower_final).renamed("ipndm")


def uniform_moments(scale: Float) -> Moments:
    """int_0^1 v^j dv = 1 / (j + 1): the kernel is constant in rho."""

    def rule(count: int, rows: NDArray[np.int64]) -> Float:
        return scale[rows, None] / np.arange(1.0, count + 1)

    return rule


def time_moments(grid: Grid, scale: Float) -> Moments:
    """int v^j drho over each step, v the share of the step's time, relative to rho_t - rho_s.

    By parts this is (rho_t - j int v^(j-1) rho dv) / (rho_t - rho_s) for j >= 1, which needs the
    schedule's rho(t) but not its derivative.
    """

    def rule(count: int, rows: NDArray[np.int64]) -> Float:
        schedule = grid.require_schedule()
        points, weights = np.polynomial.legendre.leggauss(QUADRATURE)
        # Squared, because rho is a square root of time where data turn clean.
        share, weights = ((points + 1) / 2) ** 2, (points + 1) / 2 * weights
        rho = grid.nsr
        mu = np.ones((len(rows), count))
        for row, n in zip(mu, rows, strict=True):
            start, stop = grid.time[n], grid.time[n + 1]
            knots = schedule.knots[(schedule.knots > stop) & (schedule.knots < start)]
            edges = np.concatenate([[stop], knots, [start]])
            low, width = edges[:-1, None], np.diff(edges)[:, None]
            times = low + width * share
            v = (times - start) / (stop - start)
            # Subtracting rho_t first keeps small steps exact.
            gap = (schedule.nsr(times) - rho[n + 1]) * weights * width / (start - stop)
            for j in range(1, count):
                row[j] = -j * (gap * v ** (j - 1)).sum() / (rho[n + 1] - rho[n])
        return scale[rows, None] * mu

    return rule
