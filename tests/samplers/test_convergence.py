"""Orders of convergence on an exact mixture, errors of independent implementations, variances."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import build, exact
from fewstep.schedules import Grid, VPLinear

from .problems import Problem, gentle

# Measured order of every deterministic solver when no order is lowered at the end.
ORDERS = {
    "ddim": 1,
    "dpmpp-2m": 2,
    "dpmpp-2m-heun": 2,
    "dpmpp-3m": 2,
    "dpm-2m": 2,
    "dpm-3m": 2,
    "dpmpp-2s": 2,
    "dpmpp-3s": 3,
    "dpm-2s": 2,
    "dpm-3s": 3,
    "ab-2": 2,
    "ab-3": 3,
    "ab-4": 4,
    "ab-5": 5,
    "deis-2": 2,
    "deis-3": 3,
    "deis-4": 4,
    "deis-tab2": 2,
    "deis-tab3": 3,
    "deis-tab4": 4,
    "deis-rhoab2": 2,
    "deis-rhoab3": 3,
    "deis-rhoab4": 4,
    "unip-2": 2,
    "unip-3": 3,
    "unip-4": 4,
    "unipc-1": 2,
    "unipc-2": 3,
    "unipc-3": 4,
    "unipc-4": 5,
    "dpm-v3": 4,
    "heun": 2,
    "deis-rho-kutta3": 3,
    "deis-rho-rk4": 4,
    "dpm-2": 2,
    # Weights of a uniform grid: order 2 on a smooth one, whatever the number of outputs.
    "ipndm-2": 2,
    "ipndm-3": 2,
    "ipndm-4": 2,
    "pndm": 2,
    "pndm-rk4": 2,
    "heun-flow": 2,
}


def unlowered(name: str, grid: Grid) -> fewstep.Tableau:
    """The table with its full order up to the last step, where there is such an option."""
    try:
        return build(name, grid, lower_final=False)
    except TypeError:
        return build(name, grid)


def test_the_registry_states_these_orders():
    for solver in fewstep.samplers.solvers():
        if solver.name in ORDERS:
            assert solver.order == ORDERS[solver.name], solver.name
    deterministic = {
        s.name for s in fewstep.samplers.solvers() if not build(s.name, gentle().grid(3)).stochastic
    }
    assert deterministic == set(ORDERS)


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    """log2 of the error ratio between 80 and 160 steps, or twice that for high orders.

    Singlestep solvers are given multiples of 3, so that both runs are made of whole steps.
    """
    problem = gentle()
    few = 160 if ORDERS[name] > 3 else 81 if name.endswith("s") else 80
    errors = [problem.error(unlowered(name, problem.grid(n))) for n in (few, 2 * few)]
    order = np.log2(errors[0] / errors[1])
    assert abs(order - ORDERS[name]) < 0.25, f"{name}: {order:.2f} from {errors}"


@cache
def mixture8() -> Problem:
    path = Path(__file__).parent / "data" / "mixture8.npz"
    with np.load(path) as data:
        denoiser = exact.mixture(data["means"], data["weights"], std=float(data["std"]))
        return Problem(
            denoiser,
            float(data["sigma_max"]),
            float(data["sigma_min"]),
            torch.from_numpy(data["x_init"]),
            torch.from_numpy(data["x_reference"]),
        )


FULL = {"lower_final": False}

# Root mean square errors at 5, 10 and 20 nodes that k-diffusion, azula, diffusers, skrample and
# diff-sampler reach on this problem; Heun and the like are compared at equal numbers of steps.
PEERS = [
    ("ddim", {}, (1.09e-1, 6.59e-2, 4.29e-2)),
    ("dpmpp-2m", FULL, (7.38e-2, 3.31e-2, 1.32e-2)),
    ("dpmpp-2m", {}, (6.81e-2, 3.16e-2, 1.35e-2)),
    ("dpmpp-2m-heun", FULL, (9.14e-2, 3.36e-2, 6.49e-3)),
    ("deis-3", FULL, (7.44e-2, 2.65e-2, 3.79e-3)),
    ("dpmpp-3m", FULL, (1.38e-1, 2.49e-2, 4.08e-3)),
    ("ab-3", FULL, (1.58e-1, 2.87e-2, 5.32e-3)),
    ("unipc-2", {}, (6.13e-2, 2.48e-2, 2.96e-3)),
    ("unipc-2", {"variant": "exact"}, (5.61e-2, 2.33e-2, 2.82e-3)),
    ("unipc-2", FULL, (7.69e-2, 2.57e-2, 3.22e-3)),
    ("unipc-2", {**FULL, "variant": "bh1"}, (1.79e-1, 3.40e-2, 3.94e-3)),
    ("unipc-3", FULL, (1.63e-1, 3.39e-2, 4.87e-3)),
    ("unipc-3", {"variant": "exact"}, (5.41e-2, 2.47e-2, 2.29e-3)),
    ("ipndm-3", {}, (7.70e-2, 2.54e-2, 3.17e-3)),
]


@pytest.mark.parametrize(("name", "options", "expected"), PEERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors_of_independent_implementations(name, options, expected, dtype):
    problem = mixture8()
    x = problem.x.to(dtype)
    errors = [problem.error(build(name, problem.grid(n), **options), x) for n in (5, 10, 20)]
    np.testing.assert_allclose(errors, expected, rtol=0.02)


def test_heun_at_equal_evaluations():
    """Heun costs two calls a step: 4, 10 and 20 evaluations."""
    problem = mixture8()
    tables = [build("heun", problem.grid(n)) for n in (2, 5, 10)]
    assert [table.nfe for table in tables] == [4, 10, 20]
    errors = [problem.error(table) for table in tables]
    np.testing.assert_allclose(errors, [7.65e-1, 8.79e-2, 1.76e-2], rtol=0.02)


# Errors at 320 steps, where they differ by orders of magnitude between methods.
ASYMPTOTIC = [
    ("heun", {}, 2.4e-5),
    ("dpmpp-2m", FULL, 3.0e-5),
    ("dpmpp-2m-heun", FULL, 3.0e-5),
    ("deis-3", FULL, 3.4e-6),
    ("dpmpp-3m", FULL, 7.5e-6),
    ("ab-3", FULL, 2.4e-6),
    ("unipc-2", {}, 4.5e-6),
    ("unipc-2", FULL, 3.2e-6),
    ("unipc-3", FULL, 2.0e-7),
    ("ipndm-3", {}, 1.2e-5),
]


@pytest.mark.parametrize(("name", "options", "expected"), ASYMPTOTIC)
def test_errors_at_320_steps(name, options, expected):
    problem = mixture8()
    error = problem.error(build(name, problem.grid(320), **options))
    # The published values have two digits.
    assert error == pytest.approx(expected, rel=0.03)


def gaussian_deviation(table: fewstep.Tableau, v: float) -> float:
    """Relative error of the final standard deviation on N(0, v), by linear algebra, no sampling.

    x0 = c_k x with c_k = alpha v / (alpha^2 v + sigma^2): every state is linear in x[0] and z.
    """
    table = table.in_basis("x0")
    grid, n = table.grid, table.grid.nfe
    gain = grid.alpha * v / (grid.alpha**2 * v + grid.sigma**2)
    states = np.zeros((n + 1, n + 1))
    # Start from the exact law at node 0, so that only the solver is measured.
    states[0, 0] = np.sqrt(grid.alpha[0] ** 2 * v + grid.sigma[0] ** 2)
    for k in range(n):
        states[k + 1] = table.carry[k] * states[k]
        states[k + 1] += (table.weights[k] * gain[:n]) @ states[:n]
        states[k + 1, 1:] += table.noise[k]
    exact_std = np.sqrt(grid.alpha[-1] ** 2 * v + grid.sigma[-1] ** 2)
    return float(np.sqrt((states[-1] ** 2).sum()) / exact_std - 1)


# The weak order of the variance on Gaussian data.
WEAK = {
    "ddpm": 1,
    "sde-dpmpp-2m": 2,
    "sde-dpmpp-3m": 2,
    "sa-2": 2,
    "sa-3": 2,
    "dpm-2-ancestral": 2,
    "dpmpp-sde": 2,
}


@pytest.mark.parametrize("name", WEAK)
def test_variance_of_stochastic_solvers(name):
    """The final variance converges to the exact one, at least at the weak order."""
    schedule = VPLinear(t_min=1e-2)
    errors = []
    for n in (100, 200, 400):
        grid = fewstep.grid(schedule, n, "lam", end="min")
        errors.append(abs(gaussian_deviation(unlowered(name, grid), 0.25)))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[-1] < 0.02
    assert orders[-1] > WEAK[name] - 0.25, f"{name}: {orders} from {errors}"


def test_sampling_matches_the_linear_algebra():
    """The streams really are standard normal and independent: Monte Carlo equals the algebra."""
    schedule = VPLinear(t_min=1e-2)
    grid = fewstep.grid(schedule, 12, "lam", end="min")
    table = build("sde-dpmpp-2m", grid)
    denoiser = exact.gaussian(np.zeros(64), std=0.5)
    v = 0.25
    seeds = range(2000)
    z = fewstep.noise(grid, (64,), seeds, dtype=torch.float64) / grid.sigma[0]
    x = z * np.sqrt(grid.alpha[0] ** 2 * v + grid.sigma[0] ** 2)
    end = fewstep.sample(denoiser, table, x, seeds=seeds)
    expected = (1 + gaussian_deviation(table, v)) * np.sqrt(
        grid.alpha[-1] ** 2 * v + grid.sigma[-1] ** 2
    )
    # 128,000 draws: three standard errors are 0.6 %.
    assert float(end.std()) == pytest.approx(expected, rel=0.006)
