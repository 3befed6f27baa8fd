"""What diffusers 0.42 gets wrong, shown on diffusers; and that the same request works here."""

from __future__ import annotations

import copy
import importlib

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers as S
from fewstep.samplers import Tableau
from fewstep.schedules import FlowMatching, Grid, VPDiscrete
from scipy.integrate import quad

from .helpers import SD, levels_of, numbers, row_error, steps_of

pytestmark = pytest.mark.skipif(
    not diffusers.__version__.startswith("0.42"), reason="measured on diffusers 0.42"
)


def made(kind: str, nfe: int, **config):
    """A scheduler with the noise levels of Stable Diffusion, ready to step."""
    scheduler = getattr(diffusers, kind)(**{**SD, **config})
    scheduler.set_timesteps(nfe)
    return scheduler


def run(scheduler) -> torch.Tensor:
    """Sample from noise with sigma x, the exact eps of data N(0, 1)."""
    x = torch.randn((1, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        sigma = (1 - scheduler.alphas_cumprod[int(t)]) ** 0.5
        x = scheduler.step(sigma * x, t, x, return_dict=False)[0]
    return x


def solves_constants(table: Tableau) -> bool:
    """Constant x0 is solved exactly: carry sigma' / sigma, rows sum to alpha' - alpha carry."""
    table, grid = table.in_basis("x0"), table.grid
    kept = grid.sigma[1:] / grid.sigma[:-1]
    sums = grid.alpha[1:] - grid.alpha[:-1] * kept
    return bool(
        np.allclose(table.carry, kept, atol=1e-6)
        and np.allclose(table.weights.sum(1), sums, atol=1e-6)
    )


def exact_second_moment(grid: Grid, n: int, tau2: float = 0.0, basis: str = "x0") -> float:
    """What row n should add for outputs (lam - lam_n)^2, by quadrature."""
    h = grid.lam[n + 1] - grid.lam[n]
    rate = -(1 + tau2) if basis == "x0" else 1
    scale = grid.alpha[n + 1] if basis == "x0" else -grid.sigma[n + 1]

    def weighed(u: float) -> float:
        return (1 + tau2) * np.exp(rate * (h - u)) * u**2

    return scale * quad(weighed, 0, h, epsabs=1e-14, epsrel=1e-12)[0]


def second_moment(table: Tableau, n: int) -> float:
    """What row n adds for them."""
    return float(table.weights[n] @ (table.grid.lam[:-1] - table.grid.lam[n]) ** 2)


def test_released_third_order_halves_the_second_derivative():
    theirs = S.trace(
        made("DPMSolverMultistepScheduler", 20, solver_order=3, use_karras_sigmas=True)
    )
    grid = theirs.grid
    exact, released = S.adams(grid, 3), S.dpm(grid, 3)
    for n in range(2, 17):
        wanted = exact_second_moment(grid, n)
        assert second_moment(exact, n) == pytest.approx(wanted, rel=1e-9)
        assert second_moment(theirs, n) == pytest.approx(wanted / 2, rel=1e-5)
        assert second_moment(released, n) == pytest.approx(wanted / 2, rel=1e-9)


def test_third_order_of_the_sde_has_a_wrong_sign():
    theirs = S.trace(
        made(
            "DPMSolverMultistepScheduler",
            14,
            solver_order=3,
            algorithm_type="sde-dpmsolver++",
            use_karras_sigmas=True,
        )
    )
    grid = theirs.grid
    ours = S.sde_dpm(grid, 3)
    for n in range(3, 11):
        wanted = exact_second_moment(grid, n, tau2=1.0)
        assert second_moment(ours, n) == pytest.approx(wanted, rel=1e-9)
        # Not a matter of half a term: the error is many times the whole.
        assert abs(second_moment(theirs, n) - wanted) > 3 * wanted


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "DPMSolverMultistepScheduler",
            {**SD, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_third_order_of_other_sdes_crashes(kind, config):
    scheduler = getattr(diffusers, kind)(**config, solver_order=3)
    scheduler.set_timesteps(6)
    with pytest.raises(UnboundLocalError):
        S.trace(scheduler)
    scheduler = getattr(diffusers, kind)(**config, solver_order=2)
    scheduler.set_timesteps(6)
    basis = "x0" if config["algorithm_type"].endswith("++") else "eps"
    ours = S.sde_dpm(S.trace(scheduler).grid, 3, basis, lower_final=False)
    for n in range(2, 5):
        wanted = exact_second_moment(ours.grid, n, 1.0, basis)
        assert second_moment(ours, n) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"lower_order_final": False, "solver_order": 2}, {"order": 2, "lower_final": False}),
        ({"lower_order_final": False, "solver_order": 3}, {"order": 3, "lower_final": False}),
        ({"predict_x0": False}, {"order": 2, "prediction": "eps"}),
        ({"solver_type": "bh1"}, {"order": 2, "variant": "bh1"}),
    ],
)
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_unipc_into_clean_data(config, options, nfe):
    """Their default end is sigma = 0, where h is infinite and their sums are 0 times inf."""
    scheduler = made("UniPCMultistepScheduler", nfe, **config)
    if nfe > 1 or "lower_order_final" not in config:
        try:
            assert not run(scheduler).isfinite().any()
        except RuntimeError as error:
            # The third order does not get as far as NaN.
            assert "singular" in str(error)  # noqa: PT017
    grid = fewstep.grid(levels_of(scheduler), nfe, "linspace", multistep=True)
    ours = S.unipc(grid, **options)
    assert np.isfinite(numbers(ours)).all()
    assert solves_constants(ours)
    if ours.basis == "eps":
        return
    # The end is the newest x0 and nothing else. (In eps the last correction remains in it.)
    assert ours.carry[-1] == pytest.approx(0, abs=1e-12)
    assert ours.weights[-1, -1] == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(ours.weights[-1, :-1], 0, atol=1e-12)


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_thousand_steps_on_a_thousand_levels(kind):
    scheduler = made(kind, 1000)
    assert len(scheduler.timesteps.unique()) < 1000
    assert run(scheduler).isnan().all()
    law = levels_of(scheduler)
    with pytest.raises(ValueError, match=r"node \d+ .* repeats node \d+"):
        fewstep.grid(law, 1000, "linspace", multistep=True)
    table = S.unipc(fewstep.grid(law, 1000, "uniform"), 3)
    assert np.isfinite(numbers(table)).all()
    assert solves_constants(table)


@pytest.mark.parametrize(
    "kind",
    ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"],
)
def test_rounded_times_that_repeat_lose_the_step_count(kind):
    scheduler = made(kind, 50, use_beta_sigmas=True)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    with pytest.raises((IndexError, AssertionError)):
        run(scheduler)
    # By counter, nothing repeats; labels are floats.
    scheduler.set_timesteps(50)
    table = S.trace(scheduler)
    assert len(table.carry) == 50
    grid = fewstep.grid(levels_of(scheduler), 50, "beta")
    assert len(np.unique(grid.label)) == 51


@pytest.mark.parametrize("kind", ["DEISMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_a_last_step_of_no_length(kind, spacing):
    """Asked to end at sigma_min, they arrive one step early and waste an evaluation."""
    config = {} if kind.startswith("DEIS") else {"final_sigmas_type": "sigma_min"}
    scheduler = made(kind, 8, **config, **{f"use_{spacing}_sigmas": True})
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]
    grid = fewstep.grid(levels_of(scheduler), 8, spacing, end="min")
    assert (np.diff(grid.sigma) < 0).all()
    assert grid.sigma[-1] / grid.alpha[-1] == pytest.approx(float(scheduler.sigmas[-1]), rel=1e-6)


def test_deis_loses_its_digits_in_float32(monkeypatch):
    scheduler = made("DEISMultistepScheduler", 200, solver_order=3)
    theirs = S.trace(scheduler)
    ours = S.adams(theirs.grid, 3, "eps", lower_final=False)
    assert row_error(ours, theirs) <= 1e-6
    # The same numbers as it computes them: tracing usually raises its sigmas to float64 first.
    module = importlib.import_module("fewstep.samplers.trace_diffusers")
    monkeypatch.setattr(module, "raised", copy.deepcopy)
    assert row_error(ours, S.trace(scheduler)) > 1e-4


def test_flow_matching_euler_shifts_its_ends_twice():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    once = 3 * 1e-3 / (1 + 2 * 1e-3)
    twice = 3 * once / (1 + 2 * once)
    assert float(scheduler.sigmas[-2]) == pytest.approx(twice, rel=1e-5)
    grid = fewstep.grid(FlowMatching(3.0), 5, "uniform", end="min")
    assert grid.sigma[-1] == pytest.approx(once, rel=1e-12)


@pytest.mark.parametrize("nfe", [3, 6, 7])
def test_ddim_forgets_where_it_is(nfe):
    """It steps to t - 1000 // n, but is next asked at the rounded t - 1000 / n."""
    theirs = S.trace(made("DDIMScheduler", nfe, timestep_spacing="trailing", clip_sample=False))
    assert not solves_constants(theirs)
    assert solves_constants(S.ddim(theirs.grid))


def test_ddpm_adds_noise_to_its_result():
    """With variance "large" and trailing steps the last draw, of size 0.49, is left in."""
    theirs = S.trace(
        made(
            "DDPMScheduler",
            5,
            variance_type="fixed_large",
            timestep_spacing="trailing",
            clip_sample=False,
        )
    )
    assert theirs.grid.sigma[-1] == 0
    assert theirs.noise[-1, -1] > 0.4
    ours = S.ddpm(theirs.grid, "large")
    assert ours.noise[-1, -1] == 0
    # That draw is all that differs.
    assert row_error(ours, theirs, slice(0, 4)) <= 1e-6


def test_pndm_mixes_velocities_of_different_times():
    """v at one time is not v at another; eps is combined here, whatever the network predicts."""
    theirs = S.trace(
        made(
            "PNDMScheduler",
            6,
            skip_prk_steps=True,
            set_alpha_to_one=True,
            prediction_type="v_prediction",
        )
    )
    assert not solves_constants(theirs)
    assert solves_constants(S.pndm(steps_of(theirs)))


@pytest.mark.parametrize("nfe", [1, 2, 3])
def test_pndm_needs_four_steps_for_runge_kutta(nfe):
    with pytest.raises(ValueError, match="broadcast"):
        made("PNDMScheduler", nfe, skip_prk_steps=False)
    grid = fewstep.grid(VPDiscrete(fewstep.schedules.betas()), nfe, "trailing")
    table = S.pndm(grid, "rk4")
    # Four evaluations in each of the steps that do not end in clean data.
    assert table.nfe == 4 * (nfe - 1) + 1
    assert solves_constants(table)


def test_ipndm_ignores_its_first_evaluation():
    """At pure noise its x0 is taken to be 0, whatever the network says."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(5)
    theirs = S.trace(scheduler)
    assert theirs.grid.alpha[0] == 0
    assert (theirs.weights[:, 0] == 0).all()
    assert not solves_constants(theirs)
    ours = S.ipndm(theirs.grid)
    assert ours.weights[0, 0] == pytest.approx(theirs.grid.alpha[1], rel=1e-12)
    assert solves_constants(ours)


def test_leading_steps_of_a_multistep_class_start_late():
    """Pure noise is handed to a network that expects 14 % less: sigma 5.9 instead of 14.6."""
    scheduler = made("DPMSolverMultistepScheduler", 5, timestep_spacing="leading", steps_offset=1)
    assert (int(scheduler.timesteps[0]), float(scheduler.init_noise_sigma)) == (831, 1.0)
    grid = fewstep.grid(levels_of(scheduler), 5, "leading", multistep=True, offset=1)
    # The rule is the rule; but the noise to start from is scaled to its first node.
    assert grid.time[0] == 831
    x = fewstep.noise(grid, (1000,), [0])
    assert float(x.std()) == pytest.approx(grid.sigma[0], rel=0.05)
