"""Runge-Kutta methods in rho = sigma / alpha (rhoRK), and DPM-Solver-2 with inserted midpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..schedules import Grid
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
            raise ValueError(f"Butcher tableau: rows sum to {sums}, c is {self.c}, b sums to {sum(self.b)}")


HEUN = Butcher((0, 1), ((), (1,)), (1 / 2, 1 / 2))
KUTTA3 = Butcher((0, 1 / 2, 1), ((), (1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6))
RK4 = Butcher(
    (0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
METHODS = {"heun": HEUN, "kutta3": KUTTA3, "rk4": RK4}


def rho_rk(
    grid: Grid, method: str | Butcher = "heun", variable: Literal["rho", "flow"] = "rho"
) -> Tableau:
    """A Runge-Kutta method on d(x / alpha) / drho = eps, rho = sigma / alpha.

    Stage i: x_i / alpha_i = x_n / alpha_n + drho sum_j a_ij eps_j (Zhang and Chen 2023, rhoRK).
    "heun" is the sampler of Karras et al. 2022, algorithm 1, without churn. `variable` "flow" is
    the method on dx / dsigma = eps - x0 of the flow form of the states, x / (alpha + sigma), which
    is regular at pure noise. A step costs as many evaluations as the method has stages; a step into
    clean data, and in rho one from pure noise, is one Euler step. `grid` holds the steps, the
    table's grid also the stages.
    """
    if variable not in ("rho", "flow"):
        raise ValueError(f"rho_rk: variable must be 'rho' or 'flow', got {variable!r}")
    flow = variable == "flow"
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"rho_rk: method must be one of {', '.join(METHODS)}, got {method!r}")
        method, name = METHODS[method], f"rho-{method}"
    else:
        name = "rho-rk"
    rho = np.exp(-np.logaddexp(0, grid.lam)) if flow else np.exp(-grid.lam)
    lam, stage, steps = [grid.lam[0]], [False], []
    for n in range(grid.nfe):
        plain = not np.isfinite(grid.lam[n + 1] - (0 if flow else grid.lam[n]))
        inner = [] if plain else list(method.c[1:])
        steps.append((len(lam) - 1, plain))
        for c in inner:
            # The ends as they are, not through a logarithm.
            middle = rho[n] + c * (rho[n + 1] - rho[n])
            inside = (np.log1p(-middle) if flow else 0.0) - np.log(middle)
            lam.append(grid.lam[n + 1] if c == 1 else inside)
            stage.append(True)
        lam.append(grid.lam[n + 1])
        stage.append(False)
    nodes = expand(grid, np.array(lam), stage)
    unit = nodes.alpha + nodes.sigma if flow else nodes.alpha
    rows: list[Row] = []
    for n, (base, plain) in enumerate(steps):
        ways = [(1.0,)] if plain else [*method.a[1:], method.b]
        for i, way in enumerate(ways):
            target = base + i + 1
            if unit[base] == 0:
                # From pure noise the first-order step in x0 (see `Kernel`).
                carry = nodes.sigma[target] / nodes.sigma[base]
                rows.append(Row(base, float(carry), {base: float(nodes.alpha[target])}))
                continue
            step = unit[target] * (rho[n + 1] - rho[n])
            terms = {base + j: float(step * w) for j, w in enumerate(way) if w != 0}
            rows.append(Row(base, float(unit[target] / unit[base]), terms))
    if flow:
        return chain(nodes, "flow", rows, name=f"{name}-flow").in_basis("x0")
    return chain(nodes, "eps", rows, name=name)


def expand(grid: Grid, lam: np.ndarray, stage: list[bool]) -> Grid:
    """The grid with stages at new lam; nodes that exist already are taken over unchanged."""
    where = np.searchsorted(grid.lam, lam)
    known = grid.lam[np.minimum(where, grid.nfe)] == lam
    if known.all():
        return grid.select(where.tolist(), stage)
    fresh = Grid.from_lams(grid.require_schedule(), lam, np.array(stage))
    columns = {
        name: np.where(known, getattr(grid, name)[np.minimum(where, grid.nfe)], getattr(fresh, name))
        for name in ("time", "alpha", "sigma", "lam", "label")
    }
    return Grid(**columns, stage=np.array(stage), schedule=grid.schedule)


def heun(grid: Grid) -> Tableau:
    """Heun's method in sigma / alpha: `rho_rk` with two stages, 2 N - 1 evaluations to clean data."""
    return rho_rk(grid, "heun").renamed("heun")


def dpm2(
    grid: Grid, r: float = 0.5, prediction: Basis = "eps", form: Form = "midpoint"
) -> Tableau:
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
