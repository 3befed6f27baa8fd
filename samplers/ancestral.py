"""Two-stage solvers that step below the next level and add noise back up to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..schedules import Grid
from .basis import Basis
from .rows import Row, chain
from .tableau import Tableau


def split(start: float, stop: float, eta: float) -> tuple[float, float]:
    """(down, up), nsr to go to and noise to add: down^2 + up^2 = stop^2, in nsr = sigma / alpha.

    up = eta stop sqrt(1 - (stop / start)^2): at eta = 1 that of the reverse SDE for constant x0.
    """
    up = eta * stop * np.sqrt(1 - (stop / start) ** 2)
    return float(np.sqrt(stop**2 - up**2)), float(up)


def dpm2_ancestral(grid: Grid, eta: float = 1.0) -> Tableau:
    """DPM-Solver-2 to below the next level, then noise (k-diffusion; KDPM2Ancestral of diffusers).

    In x / alpha: an Euler step in eps to the geometric middle of the level and `down` (see
    `split`), the whole step to `down` with the slope there, and up z. A step into clean data is one
    Euler step. 2 N - 1 evaluations.
    """

    def rows(k: int, start: float, stop: float) -> tuple[float, list[Row]]:
        down, up = split(start, stop, eta)
        middle = float(np.sqrt(start * down))
        return middle, [
            Row(k, 1.0, {k: middle - start}),
            Row(k, 1.0, {k + 1: down - start}, {k + 1: up}),
        ]

    return two_stage(grid, "eps", rows, eta, name="dpm2-ancestral")


def dpmpp_sde(grid: Grid, eta: float = 1.0) -> Tableau:
    """DPM-Solver++ with a midpoint and noise at both (k-diffusion; DPMSolverSDE of diffusers).

    In x / alpha, with x0 at hand, a transfer from s to t is x_t = (down / s) x_s + (1 - down / s)
    x0 + up z (see `split`). One goes to the geometric middle of the step, the other over the whole
    of it with the x0 found there. Both noises are increments of one Brownian motion in sigma, so
    that the second contains the first. 2 N - 1 evaluations.
    """

    def rows(k: int, start: float, stop: float) -> tuple[float, list[Row]]:
        middle = float(np.sqrt(start * stop))
        (near, up_near), (down, up) = split(start, middle, eta), split(start, stop, eta)
        shared = (start - middle) / (start - stop)
        return middle, [
            Row(k, near / start, {k: 1 - near / start}, {k: up_near}),
            Row(
                k,
                down / start,
                {k + 1: 1 - down / start},
                {k: up * float(np.sqrt(shared)), k + 1: up * float(np.sqrt(1 - shared))},
            ),
        ]

    return two_stage(grid, "x0", rows, eta, name="dpmpp-sde")


def two_stage(
    grid: Grid,
    basis: Basis,
    rows: Callable[[int, float, float], tuple[float, list[Row]]],
    eta: float,
    *,
    name: str,
) -> Tableau:
    """The rows of every step in x / alpha, each with a stage at the nsr that it names."""
    if not 0 <= eta <= 1:
        raise ValueError(f"{name}: eta must be in [0, 1], got {eta}")
    nsr, lam, stage, every = grid.nsr, [grid.lam[0]], [False], list[Row]()
    for n in range(grid.nfe):
        k, start, stop = len(every), float(nsr[n]), float(nsr[n + 1])
        if np.isinf(start):
            # From pure noise, in units of its sigma: the first-order step in x0 (see `Kernel`).
            down, up = stop * float(np.sqrt(1 - eta**2)), stop * eta
            every.append(Row(k, down, {k: 1.0}, {k: up}))
        elif stop == 0:
            # x0, which Euler in eps arrives at too.
            every.append(Row(k, 0.0, {k: 1.0}) if basis == "x0" else Row(k, 1.0, {k: -start}))
        else:
            middle, pair = rows(k, start, stop)
            every += pair
            lam.append(-np.log(middle))
            stage.append(True)
        lam.append(grid.lam[n + 1])
        stage.append(False)
    nodes = grid.with_nodes(np.array(lam), np.array(stage))
    alpha = nodes.alpha
    unit = np.where(alpha > 0, alpha, nodes.sigma)
    scaled = [
        Row(
            base,
            float(carry * alpha[n + 1] / unit[base]),
            {k: float(alpha[n + 1] * w) for k, w in weights.items()},
            {k: float(alpha[n + 1] * w) for k, w in noise.items()},
        )
        for n, (base, carry, weights, noise) in enumerate(every)
    ]
    return chain(nodes, basis, scaled, name=name)
