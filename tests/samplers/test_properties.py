"""What is always true, for every solver on every grid (the list of the design)."""

from __future__ import annotations

from functools import cache

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import build, exact, solver
from fewstep.schedules import EDM, SPACINGS, FlowMatching, Grid, VPLinear

from .problems import SCHEDULES, SOLVERS

# These start from eps at node 0 by definition and refuse a grid that starts at pure noise.
NEEDS_SIGNAL = {"pndm", "pndm-rk4"}
# Polynomials and midpoints in time depend on the clock, which differs between forms.
USES_TIME = {"deis-tab2", "deis-tab3", "deis-tab4", "pndm-rk4"}
# Built on eps, also where the table is stored in x0 because the grid starts at pure noise.
EPS_BUILT = ("dpm-", "deis", "ipndm", "pndm", "heun")
# Keep the variance in the limit of small steps only: the corrector reuses the predictor's noise.
CORRECTED_NOISE = {"sa-2", "sa-3"}
# Keep their order into clean data, as published.
REGULAR_END = ("ipndm", "pndm")


@cache
def grids(nfe: int) -> list[tuple[str, Grid]]:
    """Every schedule with every spacing and end that it has, the same nodes once."""
    found: dict[tuple[str, bytes], tuple[str, Grid]] = {}
    for name, schedule in SCHEDULES.items():
        for spacing in SPACINGS:
            for end in ("zero", "min"):
                if spacing == "lam" and schedule.alpha(schedule.t_max) == 0:
                    continue  # uniform lam cannot start at lam = -inf
                if nfe in (2, 3) and spacing not in ("uniform", "karras", "lam"):
                    continue  # of few nodes inside, no spacing makes much
                nodes = fewstep.grid(schedule, nfe, spacing, end=end)
                place = nodes.lam.round(9).tobytes()
                found.setdefault((name, place), (f"{name} {spacing} {end}", nodes))
    return list(found.values())


def built(name: str, grid: Grid) -> fewstep.Tableau | None:
    """The table, or None where the solver is not defined."""
    if name in NEEDS_SIGNAL and grid.alpha[0] == 0:
        return None
    return build(name, grid)


def close(found, expected, rtol: float, atol: float) -> bool:
    """What numpy's tests ask, without their messages: they take as long as making a table."""
    return bool((np.abs(found - expected) <= atol + rtol * np.abs(expected)).all())


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 6])
def test_constant_outputs_are_solved_exactly(name, nfe):
    """On constant x0: carry sigma'/sigma, rows sum to alpha' - alpha sigma'/sigma.

    A table in eps is tested there, where alpha and sigma change places: the change to x0 is exact
    algebra, but costs digits on a grid that goes from 1 % signal to 1 % noise in one step.
    """
    for label, grid in grids(nfe):
        table = built(name, grid)
        if table is None:
            continue
        if table.stochastic:
            # Noise is added to constant x0, and leaves no eps that would be constant.
            table = table.in_basis("x0")
        nodes = table.grid
        kept, rest = nodes.sigma, nodes.alpha
        if table.basis == "eps":
            kept, rest = rest, kept
        # Built on eps and changed to x0, because the grid starts at pure noise.
        converted = table.basis == "x0" and name.startswith(EPS_BUILT)
        rtol, atol = (1e-5, 1e-8) if converted else (1e-11, 1e-13)
        carry = table.carry if table.stochastic else kept[1:] / kept[:-1]
        assert close(table.carry, carry, rtol, atol), label
        sums = rest[1:] - rest[:-1] * carry
        scale = np.abs(rest[:-1] * carry).max()
        assert close(table.weights.sum(1), sums, rtol, max(atol, 1e-14 * scale)), label


# Of the others the states are sums of x[0] alone, and their carry is tested above.
STOCHASTIC = [
    s for s in SOLVERS if build(s, fewstep.grid(VPLinear(), 3, "uniform", end="min")).stochastic
]


@pytest.mark.parametrize("name", [s for s in STOCHASTIC if s not in CORRECTED_NOISE])
def test_no_noise_is_left_over(name):
    """On constant x0 the states of a stochastic solver have variance sigma^2 at every node."""
    for label, grid in grids(5):
        table = built(name, grid)
        if table is None:
            continue
        full = table.in_basis("x0").expanded()
        variance = (full.start * grid.sigma[0]) ** 2 + (full.noise**2).sum(1)
        assert close(variance, table.grid.sigma**2, 1e-7, 1e-14), label


@pytest.mark.parametrize("name", [s for s in SOLVERS if not s.startswith(REGULAR_END)])
def test_clean_end_is_the_newest_output(name):
    """A last step into clean data is order 1 unless the method is regular there."""
    for label, grid in grids(4):
        if grid.sigma[-1] > 0 or (table := built(name, grid)) is None:
            continue
        table = table.in_basis("x0")
        last = np.zeros(table.grid.nfe)
        last[-1] = 1
        assert close(table.weights[-1], last, 1e-7, 1e-9), label
        assert table.carry[-1] == pytest.approx(0, abs=1e-12), label


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_thousand_steps(name, schedule):
    """Every solver works at nfe 1000: finite, and exact on constant x0."""
    grid = fewstep.grid(SCHEDULES[schedule], 1000, "uniform")
    table = built(name, grid)
    if table is None:
        return
    x0 = torch.full((1, 2), 0.7, dtype=torch.float64)
    x = fewstep.noise(grid, (2,), [0], dtype=torch.float64) + grid.alpha[0] * x0
    got = fewstep.sample(lambda x, node: x0.expand_as(x), table, x, seeds=[0])
    torch.testing.assert_close(got, x0, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [s for s in SOLVERS if s not in USES_TIME])
def test_forms_give_the_same_samples(name):
    """VP, EDM and flow forms of the same nodes: the same x / alpha at the end."""
    lams = np.linspace(-3, 3, 9)
    denoiser = exact.mixture([[1.0, -1], [0.5, 2]], [0.4, 0.6], std=[0.3, 0.5])
    ends = []
    for schedule in (VPLinear(), EDM(), FlowMatching(3.0)):
        grid = Grid.from_lams(schedule, lams)
        z = torch.randn((16, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        table = build(name, grid)
        x = fewstep.sample(denoiser, table, grid.sigma[0] * z, seeds=range(16))
        ends.append(x / grid.alpha[-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_basis_change_is_exact(name):
    """The same samples in every basis, and back to the same table."""
    grid = Grid.from_lams(VPLinear(), np.linspace(-2.5, 3, 8))
    denoiser = exact.gaussian([0.3, -0.2], std=0.7)
    x = fewstep.noise(grid, (2,), range(4), dtype=torch.float64)
    table = build(name, grid)
    expected = fewstep.sample(denoiser, table, x, seeds=range(4))
    for basis in ("x0", "eps", "v", "flow"):
        other = table.in_basis(basis)
        got = fewstep.sample(denoiser, other, x, seeds=range(4))
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
        back = other.in_basis(table.basis)
        np.testing.assert_allclose(back.weights, table.weights, rtol=0, atol=1e-10)
        np.testing.assert_allclose(back.carry, table.carry, rtol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_agrees_with_float64(name):
    """The state in float32 costs at most 1e-5 at 50 evaluations."""
    denoiser = exact.mixture([[1.0, -1], [0.5, 2]], std=0.3)
    for nfe in (5, 50):
        grid = fewstep.grid(SCHEDULES["sd"], nfe, "karras")
        table = build(name, grid)
        x = fewstep.noise(grid, (2,), range(16))
        single = fewstep.sample(denoiser, table, x, seeds=range(16))
        double = fewstep.sample(denoiser, table, x.double(), seeds=range(16))
        assert single.dtype == torch.float32
        assert (single - double).norm() <= 1e-5 * double.norm()


def test_registry_options_reach_the_builder():
    """Names are presets: an option overrides them, an unknown one is an error."""
    grid = fewstep.grid(SCHEDULES["sd"], 5)
    assert (
        np.abs(build("unipc-3", grid).weights - build("unipc-3", grid, variant="bh1").weights).max()
        > 1e-3
    )
    with pytest.raises(TypeError, match="sharpness"):
        build("unipc-3", grid, sharpness=2)
    with pytest.raises(ValueError, match="unipc-3"):
        build("unipc-33", grid)
    for alias in ("DPM++ 2M", "dpmpp_2m", "k_dpmpp_2m", "DPMSolverMultistepScheduler"):
        assert solver(alias).name == "dpmpp-2m"
