"""Builders on polynomials in lam against their formulas, run step by step on symbols."""

from __future__ import annotations

import math
from functools import cache

import fewstep
import numpy as np
import pytest
from fewstep import samplers as S

from .symbols import (
    DIGITS,
    GRIDS,
    LEVELS,
    Symbols,
    both_bases,
    both_forms,
    every_grid,
    every_nfe,
    integral,
    parts,
    phi,
    singlestep,
)


@every_grid
@every_nfe
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(where, nfe, eta):
    """Song et al. 2021, eq. 12; its eq. 16 for states that are not variance-preserving."""
    run = Symbols(GRIDS[where](nfe))
    for k in range(nfe):
        a, s, a2, s2 = run.alpha[k], run.sigma[k], run.alpha[k + 1], run.sigma[k + 1]
        drawn = eta * s2 * math.sqrt(1 - (a * s2 / (a2 * s)) ** 2)
        eps = run.output(k, "eps")
        x = a2 * run.data[k] + math.sqrt(s2**2 - drawn**2) * eps + drawn * run.z[k]
        run.states.append(x)
    run.check(S.ddim(run.grid, eta))


@every_nfe
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(nfe, variance):
    """Ho et al. 2020, algorithm 2 and eq. 7, in alpha-bar and beta."""
    run = Symbols(fewstep.grid(LEVELS, nfe, "trailing"))
    for k in range(nfe):
        bar, after = run.alpha[k] ** 2, run.alpha[k + 1] ** 2
        beta = 1 - bar / after
        mean = math.sqrt(after) * beta / (1 - bar) * run.data[k]
        mean = mean + math.sqrt(1 - beta) * (1 - after) / (1 - bar) * run.states[k]
        kind = beta if variance == "large" else (1 - after) / (1 - bar) * beta
        run.states.append(mean + (math.sqrt(kind) * run.z[k] if after < 1 else 0))
    run.check(S.ddpm(run.grid, variance))


def multistep_difference(
    run: Symbols, k: int, basis: str, order: int, form: str, third: float
) -> np.ndarray:
    """S times E1 m + E2 D1 + E3 D2, DPM-Solver(++) multistep, with E3 times `third`."""
    _, scale, h = parts(run, k, basis)
    e1, e2, e3 = phi(basis, h)
    m = [run.output(k - i, basis) for i in range(order)]
    total = e1 * m[0]
    if order == 1:
        return scale * total
    r0 = (run.lam[k] - run.lam[k - 1]) / h
    d1_0 = (m[0] - m[1]) / r0
    if order == 2:
        return scale * (total + (e1 / 2 if form == "midpoint" else e2) * d1_0)
    r1 = (run.lam[k - 1] - run.lam[k - 2]) / h
    d1_1 = (m[1] - m[2]) / r1
    d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
    d2 = (d1_0 - d1_1) / (r0 + r1)
    return scale * (total + e2 * d1 + third * e3 * d2)


@every_grid
@every_nfe
@both_bases
@both_forms
@pytest.mark.parametrize(
    ("order", "third"), [(1, "official"), (2, "official"), (3, "official"), (3, "exact")]
)
@pytest.mark.parametrize("lower_final", [False, True])
def test_dpm_multistep(where, nfe, basis, form, order, third, lower_final):
    """Lu et al. 2022: D1 and D2; the exact second derivative has twice the released weight."""
    run = Symbols(GRIDS[where](nfe))
    for k in range(nfe):
        if run.infinite(k):
            run.states.append(run.euler(k, run.states[k]))
            continue
        a, *_ = parts(run, k, basis)
        p = run.order(k, order, lower_final)
        step = multistep_difference(run, k, basis, p, form, 2 if third == "exact" else 1)
        run.states.append(a * run.states[k] + step)
    run.check(S.dpm(run.grid, order, basis, form, third, lower_final), DIGITS[basis])


@every_grid
@every_nfe
@both_bases
@both_forms
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm(where, nfe, basis, form, order):
    """SDE-DPM-Solver(++) of Lu et al. 2022, with their exponentials of 2 h."""
    run = Symbols(GRIDS[where](nfe))
    for k in range(nfe):
        x, m = run.states[k], run.output(k, basis)
        a, s = run.alpha[k + 1], run.sigma[k + 1]
        if run.infinite(k):
            # All noise of the start is replaced; clean data have none.
            run.states.append(a * run.data[k] + s * run.z[k])
            continue
        _, _, h = parts(run, k, basis)
        d1 = 0
        if run.order(k, order, True) == 2:
            d1 = (m - run.output(k - 1, basis)) / ((run.lam[k] - run.lam[k - 1]) / h)
        if basis == "x0":
            gone = -math.expm1(-2 * h)
            x = s / run.sigma[k] * math.exp(-h) * x + a * gone * m
            x = x + a * (gone / 2 if form == "midpoint" else 1 - gone / (2 * h)) * d1
            x = x + s * math.sqrt(gone) * run.z[k]
        else:
            grown = math.expm1(h)
            x = a / run.alpha[k] * x - 2 * s * grown * m
            x = x - s * (grown if form == "midpoint" else 2 * (grown / h - 1)) * d1
            x = x + s * math.sqrt(math.expm1(2 * h)) * run.z[k]
        run.states.append(x)
    run.check(S.sde_dpm(run.grid, order, basis, form=form), DIGITS[basis])


def blocks(n: int, order: int) -> list[int]:
    """DPM-Solver-fast (Lu et al. 2022, "DPM-Solver", appendix D.3)."""
    if order == 3:
        k = n // 3 + 1
        return {0: [3] * (k - 2) + [2, 1], 1: [3] * (k - 1) + [1], 2: [3] * (k - 1) + [2]}[n % 3]
    return [2] * (n // 2) + [1] * (n % 2)


@every_grid
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 5, 6, 10])
@both_bases
@both_forms
@pytest.mark.parametrize(("order", "stage"), [(2, "form"), (3, "form"), (3, "exact")])
def test_dpm_singlestep(where, nfe, basis, form, order, stage):
    run = Symbols(GRIDS[where](nfe))
    base = 0
    for size in blocks(nfe, order):
        for inner in range(1, size + 1):
            k = base + inner - 1
            if run.infinite(k, base):
                # No interior: steps of order 1 instead.
                run.states.append(run.euler(k, run.states[k]))
            else:
                run.states.append(singlestep(run, base, inner, size, basis, form, stage))
        base += size
    table = S.dpm_singlestep(run.grid, order, basis, form, stage, lower_final=order == 3)
    run.check(table, DIGITS[basis])


def unipc_system(run: Symbols, k: int, basis: str, order: int, variant: str, corrects: bool):
    """R, b and B(h) of Zhao et al. 2023, algorithm 1, and the D_j / r_j they act on."""
    h = run.lam[k + 1] - run.lam[k]
    hh = -h if basis == "x0" else h
    m0 = run.output(k, basis)
    r = [(run.lam[k - i] - run.lam[k]) / h for i in range(1, order)]
    differences = [(run.output(k - i, basis) - m0) / r[i - 1] for i in range(1, order)]
    if corrects:
        r.append(1.0)
        differences.append(run.output(k + 1, basis) - m0)
    e = math.expm1(hh)
    big_b = hh if variant == "bh1" else e
    rows, right, term = [], [], e / hh - 1
    for i in range(1, len(r) + 1):
        rows.append([value ** (i - 1) for value in r])
        right.append(term * math.factorial(i) / big_b)
        term = term / hh - 1 / math.factorial(i + 1)
    if len(r) == 1:
        # Their shortcut for one unknown, and the only place where B(h) matters.
        rho = np.array([0.5])
    else:
        rho = np.linalg.solve(np.array(rows), np.array(right)) if r else np.array([])
    total = e * m0 + big_b * sum((w * d for w, d in zip(rho, differences, strict=True)), 0 * m0)
    return (-run.alpha[k + 1] if basis == "x0" else -run.sigma[k + 1]) * total


@every_grid
@every_nfe
@both_bases
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(
    ("order", "corrector"),
    [(1, True), (2, True), (3, True), (4, True), (2, "odd"), (3, False), (4, "odd")],
)
def test_unipc(where, nfe, basis, variant, order, corrector):
    run = Symbols(GRIDS[where](nfe))
    flags = [corrector is True or (corrector == "odd" and k % 2 == 1) for k in range(nfe)]
    corrected = run.states[0]
    for k in range(nfe):
        if run.infinite(k):
            clean = np.isposinf(run.lam[k + 1])
            x = run.into_clean(k, corrected, basis) if clean else run.euler(k, corrected)
            run.states.append(x)
            corrected = x
            continue
        a, *_ = parts(run, k, basis)
        p = run.order(k, order, True)
        run.states.append(a * corrected + unipc_system(run, k, basis, p, variant, False))
        if k + 1 < nfe and flags[k]:
            corrected = a * corrected + unipc_system(run, k, basis, p, variant, True)
        else:
            corrected = run.states[-1]
    run.check(S.unipc(run.grid, order, variant, flags, basis), DIGITS[basis])


@cache
def held(basis: str, tau: float, h: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    """The kernel of the SDE times every Lagrange polynomial of the nodes, over a step of h."""
    power = 1 + tau**2
    rate = -power if basis == "x0" else 1
    return tuple(integral(lambda u: power * math.exp(rate * (h - u)), nodes, 0, h))


def adams_step(
    run: Symbols, k: int, basis: str, tau: float, used: list[int], tweak: float = 0.0
) -> np.ndarray:
    """Sum of outputs `used`, weighed by quadrature of the kernel of the SDE; see SA-Solver.

    `tweak` is what the released SA-Solver moves from the second output to the first.
    """
    scale = run.alpha[k + 1] if basis == "x0" else -run.sigma[k + 1]
    nodes = tuple(run.lam[i] - run.lam[k] for i in used)
    weights = held(basis, tau, run.lam[k + 1] - run.lam[k], nodes)
    if tweak:
        weights = (weights[0] + tweak, weights[1] - tweak)
    return scale * sum(w * run.output(i, basis) for w, i in zip(weights, used, strict=True))


@every_grid
@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
@both_bases
@pytest.mark.parametrize("order", [3, 4, 5])
def test_adams(where, nfe, basis, order):
    run = Symbols(GRIDS[where](nfe))
    for k in range(nfe):
        x = run.states[k]
        if run.infinite(k):
            run.states.append(run.euler(k, x))
            continue
        p = run.order(k, order, False)
        a, *_ = parts(run, k, basis)
        run.states.append(a * x + adams_step(run, k, basis, 0.0, [k - i for i in range(p)]))
    run.check(S.adams(run.grid, order, basis, lower_final=False), 1e-9)


@pytest.mark.parametrize("where", ["vp", "edm", "flow"])
@both_bases
@pytest.mark.parametrize("eta", [0.25, 1.0])
def test_third_order_of_the_sde(where, basis, eta):
    run = Symbols(GRIDS[where](8))
    tau = math.sqrt(eta)
    for k in range(8):
        x, h = run.states[k], run.lam[k + 1] - run.lam[k]
        if run.infinite(k):
            run.states.append(run.alpha[k + 1] * run.data[k] + run.sigma[k + 1] * run.z[k])
            continue
        used = [k - i for i in range(run.order(k, 3, True))]
        if basis == "x0":
            keep = math.exp(-eta * h) * run.sigma[k + 1] / run.sigma[k]
            noise = math.sqrt(-math.expm1(-2 * eta * h))
        else:
            keep = run.alpha[k + 1] / run.alpha[k]
            noise = tau * math.sqrt(math.expm1(2 * h))
        x = keep * x + adams_step(run, k, basis, tau, used)
        run.states.append(x + run.sigma[k + 1] * noise * run.z[k])
    run.check(S.sde_dpm(run.grid, 3, basis, eta), 1e-9)


@every_grid
@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
@both_bases
@pytest.mark.parametrize("tau", [0.0, 1.0, 0.6])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 4), (3, 0)])
def test_sa(where, nfe, basis, tau, predictor, corrector):
    """Xue et al. 2023, algorithm 1 with the weights of eq. 15 and 18 as integrals."""
    run = Symbols(GRIDS[where](nfe))
    corrected = run.states[0]
    power = 1 + tau**2
    for k in range(nfe):
        s = run.sigma[k + 1]
        if run.infinite(k):
            if np.isposinf(run.lam[k + 1]):
                x = run.into_clean(k, corrected, basis)
            else:
                x = run.alpha[k + 1] * run.data[k] + s * (run.z[k] if tau else corrected)
            run.states.append(x)
            corrected = x
            continue
        h = run.lam[k + 1] - run.lam[k]
        if basis == "x0":
            base = math.exp(-(tau**2) * h) * s / run.sigma[k] * corrected
            base = base + s * math.sqrt(-math.expm1(-2 * tau**2 * h)) * run.z[k]
        else:
            base = run.alpha[k + 1] / run.alpha[k] * corrected
            base = base + tau * s * math.sqrt(math.expm1(2 * h)) * run.z[k]
        # Two outputs in x0: the released code replaces g by h^2 / 2.
        g = (h * power - 1 + math.exp(-power * h)) / power**2 if basis == "x0" else None
        p = run.order(k, predictor, True)
        tweak = 0.0
        if p == 2 and g is not None:
            tweak = power * (h**2 / 2 - g) / (run.lam[k] - run.lam[k - 1])
        run.states.append(base + adams_step(run, k, basis, tau, [k - i for i in range(p)], tweak))
        corrected = run.states[-1]
        if corrector and k + 1 < nfe:
            c = 1 if corrector == 1 else run.order(k, corrector - 1, True) + 1
            tweak = power * (h / 2 - g / h) if c == 2 and g is not None else 0.0
            used = [k + 1 - i for i in range(c)]
            corrected = base + adams_step(run, k, basis, tau, used, tweak)
    run.check(S.sa(run.grid, predictor, corrector, tau, basis), 1e-9)
