"""Runge-Kutta methods in rho = sigma / alpha (rhoRK), and DPM-Solver-2 with inserted midpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..schedules import Grid
from ..schedules.spacing import TRANSFORMS
from .basis import Basis
from .dpm import Form, dpm_singlestep
from .rows import Row, chain
from .tableau import Tableau


@dataclass(frozen=True)
class Butcher:
    """An explicit Runge-Kutta method: stages at c, stage weights a (below the diagonal), result b.

    Raises ValueError unless sum_j a[i][j] = c[i], c[0] = 0 and sum b = 1.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self) -> None:
        sums = [sum(row) for row in self.a]
        if not (np.allclose(sums, self.c) and np.isclose(sum(self.b), 1) and self.c[0] == 0):
            raise ValueError(
                f"Butcher tableau: rows sum to {sums}, c is {self.c}, b sums to {sum(self.b)}"
            )


HEUN = Butcher((0, 1), ((), (1,)), (1 / 2, 1 / 2))
KUTTA3 = Butcher((0, 1 / 2, 1), ((), (1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6))
RK4 = Butcher(
    (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
METHODS = {"heun": HEUN, "kutta3": KUTTA3, "rk4": RK4}


def rho_rk(
    grid: Grid, method: str | Butcher = "heun", variable: Literal["nsr", "flow_sigma"] = "nsr"
) -> Tableau:
    """A Runge-Kutta method on d(x / u) / dy = m in one of two variables y.

    y = "nsr", sigma / alpha, has u = alpha and m = eps (rhoRK of Zhang and Chen 2023; "heun" is the
    sampler of Karras et al. 2022, algorithm 1, without churn). y = "flow_sigma", nsr / (1 + nsr),
    has u = alpha + sigma and m = eps - x0, and is regular at pure noise. Stage i is
    x_i / u_i = x_n / u_n + dy sum_j a_ij m_j. A step costs as many evaluations as the method has
    stages; a step into clean data, and in nsr one from pure noise, is one Euler step. `grid` holds
    the steps, the table's grid also the stages.
    """
    if variable not in ("nsr", "flow_sigma"):
        raise ValueError(f"rho_rk: variable must be 'nsr' or 'flow_sigma', got {variable!r}")
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"rho_rk: method must be one of {', '.join(METHODS)}, got {method!r}")
        method = METHODS[method]
    to, back = TRANSFORMS[variable]
    y = to(grid.lam)
    single = np.isposinf(grid.lam[1:]) | np.isinf(y[:-1])
    lam, stage = [grid.lam[:1]], [np.zeros(1, dtype=bool)]
    for n in range(grid.nfe):
        c = np.array([1.0] if single[n] else [*method.c[1:], 1.0])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = back(y[n] + c * (y[n + 1] - y[n]))
        # Stages at the end of the step are at that node, to the bit.
        lam.append(np.where(c == 1, grid.lam[n + 1], inside))
        stage.append(np.arange(len(c)) < len(c) - 1)
    nodes = grid.with_nodes(np.concatenate(lam), np.concatenate(stage))
    unit = nodes.alpha if variable == "nsr" else nodes.alpha + nodes.sigma
    rows: list[Row] = []
    for n in range(grid.nfe):
        base = len(rows)
        if unit[base] == 0:
            # From pure noise the first-order step in x0 (see `Kernel`).
            rows.append(
                Row(base, float(nodes.sigma[1] / nodes.sigma[0]), {0: float(nodes.alpha[1])})
            )
            continue
        for i, way in enumerate([(1.0,)] if single[n] else [*method.a[1:], method.b]):
            step = unit[base + i + 1] * (y[n + 1] - y[n])
            terms = {base + j: float(step * w) for j, w in enumerate(way) if w != 0}
            rows.append(Row(base, float(unit[base + i + 1] / unit[base]), terms))
    if variable == "nsr":
        return chain(nodes, "eps", rows, name="rho-rk")
    return chain(nodes, "flow", rows, name="flow-rk").in_basis("x0")


def heun(grid: Grid) -> Tableau:
    """Heun in sigma / alpha: `rho_rk` with two stages, 2 N - 1 evaluations to clean data."""
    return rho_rk(grid, "heun").renamed("heun")


def dpm2(grid: Grid, r: float = 0.5, prediction: Basis = "eps", form: Form = "midpoint") -> Tableau:
    """DPM-Solver-2 with a stage inserted at lam + r h in every step but one into clean data.

    With r = 1/2 and eps it is DPM-Solver-2 of k-diffusion and KDPM2 of diffusers: an Euler step to
    the midpoint in log sigma, then the whole step with the slope there (Lu et al. 2022,
    "DPM-Solver", algorithm 1; Karras et al. 2022). 2 N - 1 evaluations to clean data.
    """
    if not 0 < r < 1:
        raise ValueError(f"dpm2: r must be inside (0, 1), got {r}")
    nodes = grid.with_stages([r])
    orders: list[int] = []
    for n in range(nodes.nfe):
        orders.append(2 if nodes.stage[n] else 1)
    return dpm_singlestep(nodes, orders, prediction, form).renamed("dpm2")
