"""Node placement: always ordered or refused by name, and where diffusers puts its sigmas."""

from __future__ import annotations

import diffusers
import fewstep
import numpy as np
import pytest
from fewstep.schedules import (
    EDM,
    SPACINGS,
    FlowMatching,
    Grid,
    Spacing,
    VPDiscrete,
    VPLinear,
)

from .laws import DISCRETE, LAWS, PURE_NOISE, STABLE_DIFFUSION

RULES = ("linspace", "leading", "trailing")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def refused(name: str, spacing: str, nfe: int, end: str) -> bool:
    """The few requests that have no grid at all."""
    if spacing == "lam":
        # Infinite lam cannot be divided.
        return name in PURE_NOISE
    if spacing in RULES:
        # 1000 levels, of which the last is taken by `end="min"`; linspace and leading then place
        # 1001 points on them, trailing places 1000 and the end.
        return nfe == 1000 and end == "min"
    return False


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 50, 1000])
@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.filterwarnings("error")
def test_every_grid_is_ordered_or_refused(name, end, nfe):
    law = LAWS[name]
    for spacing in [*SPACINGS, *(RULES if name in DISCRETE else ())]:
        if refused(name, spacing, nfe, end):
            with pytest.raises(ValueError, match=r"node \d|pure noise"):
                fewstep.grid(law, nfe, spacing, end=end)
            continue
        grid = fewstep.grid(law, nfe, spacing, end=end)
        columns = [grid.time, grid.alpha, grid.sigma, grid.lam]
        assert all(column.shape == (nfe + 1,) for column in columns)
        assert not any(np.isnan(column).any() for column in columns)
        assert (np.diff(grid.lam) > 0).all(), spacing
        assert (np.diff(grid.time) < 0).all(), spacing
        assert np.isfinite(grid.lam[1:-1]).all()
        # leading starts below t_max by construction.
        if spacing != "leading":
            assert grid.time[0] == law.t_max
        assert grid.time[-1] == (law.t_zero if end == "zero" else law.t_min)
        assert grid.nfe == nfe


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_multistep_linspace_cannot_place_more_nodes_than_levels(name):
    """The request that makes diffusers return NaN at 1000 steps."""
    with pytest.raises(ValueError, match=r"node \d+ .* repeats node \d+"):
        fewstep.grid(LAWS[name], 1000, "linspace", multistep=True)


def test_power_laws_are_even_in_the_variable_they_name():
    vp, edm = VPLinear(), EDM(0.01, 50.0)

    def steps(values: np.ndarray) -> np.ndarray:
        gaps = np.diff(values)
        return gaps / gaps.mean()

    def spaced(law, spacing, **options):
        return fewstep.grid(law, 12, spacing, end="min", **options)

    np.testing.assert_allclose(steps(spaced(vp, "uniform").time), 1, rtol=1e-12)
    np.testing.assert_allclose(steps(spaced(vp, "quadratic").time ** 0.5), 1, rtol=1e-10)
    np.testing.assert_allclose(steps(spaced(vp, "power").time ** (1 / 1.5)), 1, rtol=1e-10)
    np.testing.assert_allclose(steps(spaced(vp, "power", rho=3).time ** (1 / 3)), 1, rtol=1e-10)
    np.testing.assert_allclose(steps(spaced(vp, "lam").lam), 1, rtol=1e-10)
    np.testing.assert_allclose(steps(spaced(vp, "exponential").lam), 1, rtol=1e-10)
    np.testing.assert_allclose(steps(spaced(edm, "karras").sigma ** (1 / 7)), 1, rtol=1e-12)
    np.testing.assert_allclose(steps(spaced(edm, "karras", rho=3).sigma ** (1 / 3)), 1, rtol=1e-12)
    own = spaced(edm, Spacing("flow_sigma"))
    np.testing.assert_allclose(steps(own.sigma / (1 + own.sigma)), 1, rtol=1e-10)


def test_ends_can_be_chosen():
    grid = fewstep.grid(VPLinear(), 7, "karras", t_max=0.8, t_min=0.02)
    assert (grid.time[0], grid.time[-2], grid.time[-1]) == (0.8, 0.02, 0)
    grid = fewstep.grid(VPLinear(), 7, "uniform", t_max=0.8, t_min=0.02, end="min")
    assert (grid.time[0], grid.time[-1]) == (0.8, 0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 0}, "at least 1"),
        ({"nfe": -3}, "at least 1"),
        ({"nfe": 2.5}, "whole number"),
        ({"end": "nowhere"}, "end"),
        ({"spacing": "kerras"}, "unknown spacing 'kerras'.*karras"),
        ({"spacing": 5}, "unknown spacing 5; choose one of uniform"),
        ({"spacing": "leading"}, "VPDiscrete, not VPLinear"),
        ({"t_max": 1.5}, "time 1.5 is outside"),
        ({"t_min": np.nan}, "time nan is outside"),
        ({"t_min": 1.0}, r"node \d .* repeats node \d"),
        ({"t_max": 0.1, "t_min": 0.5, "end": "min"}, "node 1 .* is noisier than node 0"),
        ({"t_min": 0.0}, "clean"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_impossible_requests_are_refused(options, message):
    options = {"nfe": 5, "spacing": "karras", **options}
    with pytest.raises(ValueError, match=message):
        fewstep.grid(VPLinear(), **options)


def levels_of(scheduler) -> VPDiscrete:
    """Our schedule on the very levels of a scheduler: they are float32 products."""
    return VPDiscrete(alphas_cumprod=scheduler.alphas_cumprod.double().numpy())


def close(grid: Grid, sigmas, count: int) -> None:
    """The first `count` nodes have these sigma / alpha, to float32."""
    theirs = np.asarray(sigmas, dtype=np.float64)[:count]
    np.testing.assert_allclose((grid.sigma / grid.alpha)[:count], theirs, rtol=5e-6)


STEPS = [1, 2, 3, 5, 7, 10, 15, 20, 25, 50, 100, 333, 999]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("offset", [0, 1])
def test_rules_of_multistep_schedulers(rule, offset):
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, timestep_spacing=rule, steps_offset=offset)
    # leading with an offset runs out of the table at 1000 points.
    for n in STEPS[:-1] if offset else STEPS:
        theirs.set_timesteps(n)
        ours = fewstep.grid(levels_of(theirs), n, rule, multistep=True, offset=offset)
        assert ours.time[:-1].tolist() == theirs.timesteps.tolist()
        close(ours, theirs.sigmas, n)
        assert ours.sigma[-1] == theirs.sigmas[-1] == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_rules_of_one_step_schedulers(rule, kind):
    theirs = getattr(diffusers, kind)(**SD, timestep_spacing=rule)
    for n in STEPS:
        theirs.set_timesteps(n)
        ours = fewstep.grid(levels_of(theirs), n, rule)
        if (rule, n) == ("linspace", 1):
            # One point between 0 and 999: theirs is 0, where there is no noise to remove.
            assert (ours.time[0], theirs.timesteps.tolist()) == (999, [0])
            continue
        assert ours.time[:-1].tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("n", [2, 4, 10, 28])
def test_linspace_of_euler_where_it_falls_on_levels(n):
    """Euler keeps fractions, between levels linear in sigma; these n - 1 divide 999."""
    theirs = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="linspace")
    theirs.set_timesteps(n)
    close(fewstep.grid(levels_of(theirs), n, "linspace"), theirs.sigmas, n)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "kind",
    [
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
    ],
)
def test_spacings_in_sigma_are_those_of_diffusers(spacing, kind):
    theirs = getattr(diffusers, kind)(**SD, **{f"use_{spacing}_sigmas": True})
    for n in (2, 3, 5, 10, 40, 200):
        theirs.set_timesteps(n)
        sigmas = theirs.sigmas.unique().flip(0)
        assert len(sigmas) == n + 1
        close(fewstep.grid(levels_of(theirs), n, spacing), sigmas, n)


def test_lu_spacing_is_even_in_lam():
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    theirs.set_timesteps(12)
    for spacing in ("lam", "exponential"):
        close(fewstep.grid(levels_of(theirs), 12, spacing), theirs.sigmas, 12)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_spacings_are_those_of_diffusers(spacing, kind):
    theirs = getattr(diffusers, kind)(sigma_schedule=spacing)
    for n in (2, 3, 18, 50):
        theirs.set_timesteps(n)
        ours = fewstep.grid(EDM(), n, spacing)
        close(ours, theirs.sigmas, n)
        np.testing.assert_allclose(ours.label[:-1], theirs.timesteps, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("n", [1, 2, 5, 28])
def test_flow_shift_is_that_of_diffusers(shift, n):
    """Given sigmas = linspace(1, 1 / n, n), as the pipelines of flow models call it."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / n, n).tolist())
    ours = fewstep.grid(FlowMatching(shift), n, "uniform")
    np.testing.assert_allclose(ours.sigma, theirs.sigmas, rtol=1e-6)
    np.testing.assert_allclose(ours.label[:-1], theirs.timesteps, rtol=1e-6)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_spacings_act_on_the_flow_sigma(spacing, shift):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=shift, **{f"use_{spacing}_sigmas": True}
    )
    n = 8
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / n, n).tolist())
    ours = fewstep.grid(FlowMatching(shift), n, spacing, t_min=1 / n)
    np.testing.assert_allclose(ours.sigma, theirs.sigmas, rtol=2e-6)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_flow_grid_of_unipc(n):
    theirs = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    theirs.set_timesteps(n)
    ours = fewstep.grid(FlowMatching(3.0), n, "uniform", end="min")
    # They move the first node off pure noise by 1e-6, and are left with float32 of 1 - sigma.
    np.testing.assert_allclose(ours.sigma[1:n], theirs.sigmas[1:n], rtol=2e-6)
    assert float(theirs.sigmas[0]) == pytest.approx(1 - 1e-6, abs=1e-7)


def test_training_levels_of_stable_diffusion():
    """The published ends of the noise range of Stable Diffusion, 0.0292 and 14.6146."""
    law = VPDiscrete(STABLE_DIFFUSION)
    assert float(law.nsr(0)) == pytest.approx(0.0292, abs=1e-4)
    assert float(law.nsr(999)) == pytest.approx(14.6146, abs=1e-4)


def test_names_are_read_in_any_case():
    law = fewstep.schedules.VPLinear()
    grids = [fewstep.grid(law, 4, name) for name in ("Karras", "karras")]
    assert (grids[0].time == grids[1].time).all()


def test_quad_is_the_sub_sequence_of_ddim():
    """linspace(0, sqrt(0.8 T), S)^2, down to the first training level and then to clean data."""
    law = VPDiscrete(fewstep.schedules.betas())
    theirs = [int(s) for s in list(np.linspace(0, np.sqrt(1000 * 0.8), 10) ** 2)]
    grid = fewstep.grid(law, 10, "quad")
    assert np.floor(grid.time[:-1] + 1e-9).tolist() == [800, *theirs[-2::-1]]
    assert grid.time[-2] == 0
    assert grid.sigma[-1] == 0
    for n in (1, 2, 20, 50, 100):
        assert fewstep.grid(law, n, "quad").time[0] == pytest.approx(800)
