"""DPM-Solver and DPM-Solver++, multistep, singlestep and stochastic; exponential Adams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..schedules import Grid
from .basis import Basis
from .kernels import interpolate, kernel, moments
from .multistep import Orders, Variant, lam_moments, polynomial_weights, step_orders
from .rows import Row, chain, tableau
from .tableau import Tableau

Form = Literal["midpoint", "heun"]
Third = Literal["official", "exact"]


def check_form(form: str) -> None:
    """ValueError unless form is one of the two that the papers name."""
    if form not in ("midpoint", "heun"):
        raise ValueError(f"form must be 'midpoint' or 'heun', got {form!r}")


def check_eta(eta: float) -> None:
    """ValueError unless eta = tau^2 is a finite stochasticity."""
    if not 0 <= eta < np.inf:
        raise ValueError(f"eta must be at least 0 and finite, got {eta}")


def exponential(
    grid: Grid,
    orders: Orders,
    basis: Basis,
    variant: Variant,
    lower_final: bool,
    tau: float | Sequence[float] = 0.0,
    *,
    name: str,
) -> Tableau:
    """Multistep rows for polynomials in lam; all of this file but the singlestep solvers."""
    linear = kernel(grid, basis, tau)
    counts = step_orders(grid, orders, lower_final)
    weights = polynomial_weights(linear, grid.lam, lam_moments(linear, variant), counts)
    return tableau(grid, basis, linear.carry, weights, linear.noise, name=name)


def adams(
    grid: Grid, order: Orders = 3, prediction: Basis = "x0", lower_final: bool = True
) -> Tableau:
    """Exponential Adams-Bashforth: the exact integral of the polynomial in lam, of any order.

    In x0 it is DPM-Solver++ with exact coefficients, in eps it is DEIS in log rho.
    """
    return exponential(grid, order, prediction, "exact", lower_final, name="adams")


def dpm(
    grid: Grid,
    order: Orders = 2,
    prediction: Basis = "x0",
    form: Form = "midpoint",
    third: Third = "official",
    lower_final: bool = True,
) -> Tableau:
    """DPM-Solver++ multistep (prediction "x0") or DPM-Solver multistep ("eps").

    `form` is the second order: "midpoint" as published (D1 with weight mu_0 / 2) or "heun" (mu_1,
    the exact rule). `third` is the third order: "official" is the released code, in which the
    second derivative has half its weight and which converges with order 2; "exact" converges with
    order 3 (Lu et al. 2022, "DPM-Solver++", algorithm 2; see also `adams`).
    """
    check_form(form)
    return exponential(grid, order, prediction, dpm_variant(form, third), lower_final, name="dpm")


def sde_dpm(
    grid: Grid,
    order: Orders = 2,
    prediction: Basis = "x0",
    eta: float = 1.0,
    form: Form = "heun",
    third: Third = "exact",
    lower_final: bool = True,
) -> Tableau:
    """SDE-DPM-Solver++ multistep; eta = tau^2 is the stochasticity, 1 the reverse SDE, 0 the ODE.

    Exact constants by default, third order included: with y = (1 + eta) h the second derivative
    has weight 2 ((1 - e^-y - y) / y^2 + 1/2). `form` and `third` as in `dpm`.
    """
    check_form(form)
    check_eta(eta)
    variant = dpm_variant(form, third)
    return exponential(
        grid, order, prediction, variant, lower_final, float(np.sqrt(eta)), name="sde-dpm"
    )


def dpm_variant(form: Form, third: Third) -> Variant:
    """The moments that a pair of options stands for."""
    table: dict[tuple[str, str], Variant] = {
        ("midpoint", "official"): "official",
        ("midpoint", "exact"): "bh2",
        ("heun", "official"): "half_third",
        ("heun", "exact"): "exact",
    }
    if (form, third) not in table:
        raise ValueError(f"third must be 'official' or 'exact', got {third!r}")
    return table[form, third]


def singlestep_orders(n: int, order: int, lower_final: bool = True) -> list[int]:
    """How n evaluations are split into steps of `order`: [1, .., order] repeated, then the rest.

    With `lower_final` a split that would come out even ends with a step of order 1 instead: .. 1, 1
    for order 2 and .. 1, 2, 1 for order 3 (DPM-Solver-fast, Lu et al. 2022, "DPM-Solver", appendix
    D.3).
    """
    if not 1 <= order <= 3:
        raise ValueError(f"singlestep solvers have order 1, 2 or 3, got {order}")
    full = list(range(1, order + 1))
    orders = (full * (n // order + 1))[:n]
    if lower_final and n % order == 0:
        orders[-1:] = [1]
    return orders


def dpm_singlestep(
    grid: Grid,
    order: Orders = 2,
    prediction: Basis = "x0",
    form: Form = "midpoint",
    stage: Literal["form", "exact"] = "form",
    lower_final: bool = True,
    eta: float = 0.0,
) -> Tableau:
    """DPM-Solver(++) singlestep: a step of order p spans p intervals, the nodes inside are stages.

    `order` is a number, split by `singlestep_orders`, or one entry per node: entry p starts from
    the node p - 1 before it. With r the position of a stage in its step, order 2 is
    E1 m_s + c (m_r - m_s), c = mu_0 / (2 r) (midpoint) or mu_1 / r (heun); order 3 is
    E1 m_s + (mu_1 / r2) (m_r2 - m_s) (midpoint) or the exact three-node rule (heun). The second
    stage of order 3 is an order-2 step: of the same `form`, as diffusers has it, or "exact", as in
    Lu et al. 2022, "DPM-Solver", algorithm 2. With `eta` (tau^2, see `sde_dpm`) every state, also
    one at a stage, gets noise of its own from the start of its step.
    """
    check_form(form)
    check_eta(eta)
    n = grid.nfe
    orders = singlestep_orders(n, order, lower_final) if isinstance(order, int) else list(order)
    if len(orders) != n:
        raise ValueError(f"order: {n} nodes need {n} entries, got {len(orders)}")
    rows: list[Row] = []
    for k, (p, after) in enumerate(zip(orders, [*orders[1:], 1], strict=True)):
        if not 1 <= p <= min(3, k + 1):
            raise ValueError(f"order: entry {k} is {p}; it must be 1, 2 or 3 and at most {k + 1}")
        base = k - p + 1
        # An infinite step has no interior: it is cut into steps of order 1.
        if not np.isfinite(grid.lam[k + 1] - grid.lam[base]):
            base = k
        linear = kernel(grid.select([base, k + 1], [False, False]), prediction, np.sqrt(eta))
        used = list(range(base, k + 1)) if form == "heun" else sorted({base, k})
        weights = linear.first
        if len(used) > 1:
            nodes = (grid.lam[used] - grid.lam[base]) / linear.h
            mu = moments(linear.y[0], len(used), prediction)
            if p == 2 and form == "midpoint" and not (stage == "exact" and after == 3):
                mu[1] = mu[0] / 2
            weights = linear.scale * interpolate(nodes, mu)
        terms = dict(zip(used, weights.tolist(), strict=True))
        rows.append(Row(base, float(linear.carry[0]), terms, {k: float(linear.noise[0])}))
    stages = [False, *[rows[k].base < k for k in range(1, n)], False]
    return chain(grid.select(range(n + 1), stages), prediction, rows, name="dpm-singlestep")
