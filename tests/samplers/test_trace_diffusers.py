"""Every builder equals the diffusers class of its name, read off by tracing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers as S
from fewstep.samplers import Tableau
from fewstep.schedules import Grid

from .helpers import SD, levels_of, row_error, steps_of
from .schedulers import ENDS_AT_MIN, MULTISTEP, NFES, NOISE_NATIVE, SPACINGS, TOLERANCE, Case, few


@pytest.mark.parametrize("spacing", ["plain", "karras", "flow"])
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_into_clean_data(name, spacing):
    for nfe in (1, 2, 3, 5, 10):
        MULTISTEP[name].check(nfe, **SPACINGS[spacing])


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_to_the_smallest_sigma(name):
    for nfe in NFES:
        MULTISTEP[name].check(nfe, **SPACINGS["trailing-v"], final_sigmas_type="sigma_min")


def comparable(name, spacing, end, nfe):
    """Not a repeated last sigma (a test below), nor a corrector that is off for 50 steps only."""
    later = name.startswith("unip-") and "corrector-later" not in name
    return not (end == "sigma_min" and spacing in ENDS_AT_MIN) and not (later and nfe > 50)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spacing"), list(itertools.product(MULTISTEP, SPACINGS)))
def test_multistep_everywhere(name, spacing):
    for end, nfe in itertools.product(["zero", "sigma_min"], [*NFES, 7, 14, 15, 20, 200]):
        if comparable(name, spacing, end, nfe):
            MULTISTEP[name].check(nfe, **SPACINGS[spacing], final_sigmas_type=end)


@pytest.mark.parametrize("name", NOISE_NATIVE)
def test_noise_native(name):
    for nfe in NFES:
        NOISE_NATIVE[name].check(nfe)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", NOISE_NATIVE)
def test_noise_native_everywhere(name, prediction, rule):
    for nfe in (*NFES, 7, 14, 15, 20, 100):
        NOISE_NATIVE[name].check(nfe, timestep_spacing=rule, prediction_type=prediction)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp-2m-midpoint", "dpmpp-3m-heun", "unipc-3"])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "flow"])
def test_a_thousand_steps(name, spacing):
    MULTISTEP[name].check(1000, **SPACINGS[spacing])


def idle_cases() -> Iterator[Any]:
    """Schedulers that reach the last sigma one step early, with the orders of that step."""

    def lowered(order: int, nfe: int) -> list[int]:
        return [min(order, k + 1, nfe - k) for k in range(nfe - 1)]

    sigma_min = {**SD, "final_sigmas_type": "sigma_min"}
    solvers: dict[str, tuple[str, dict[str, Any], Callable[[Grid, int], Tableau]]] = {
        "dpmpp-3m": (
            "DPMSolverMultistepScheduler",
            {**sigma_min, "solver_order": 3},
            lambda g, n: S.dpm(g, lowered(3, n)),
        ),
        "deis-3": (
            "DEISMultistepScheduler",
            {**SD, "solver_order": 3},
            lambda g, n: S.adams(g, lowered(3, n), "eps"),
        ),
        "unipc-3": (
            "UniPCMultistepScheduler",
            {**sigma_min, "solver_order": 3},
            lambda g, n: S.unipc(g, lowered(3, n)),
        ),
        "sa-3-4": (
            "SASolverScheduler",
            {**SD, "predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 1.0},
            lambda g, n: S.sa(g, lowered(3, n), 4, lower_final=False),
        ),
    }
    for name, solver in solvers.items():
        for spacing in ("karras", "exponential", "flow"):
            # On flow nodes DPM-Solver ends at the sigma_min of a VP table instead.
            if (name, spacing) != ("dpmpp-3m", "flow"):
                yield pytest.param(*solver, spacing, id=f"{name}-{spacing}")


@pytest.mark.parametrize(("kind", "config", "build", "spacing"), list(idle_cases()))
def test_a_repeated_last_sigma(kind, config, build, spacing):
    """Their last step has no length. Up to it the rows are ours, and ours refuse it by name."""
    scheduler = getattr(diffusers, kind)(**{**config, **SPACINGS[spacing]})
    for nfe in (3, 5, 10):
        scheduler.set_timesteps(nfe)
        theirs = S.trace(scheduler)
        assert theirs.grid.sigma[-1] == theirs.grid.sigma[-2]
        real = theirs.grid.select(range(nfe), [False] * nfe)
        shorter = Tableau(
            real, theirs.carry[:-1], theirs.weights[:-1, :-1], theirs.noise[:-1, :-1], theirs.basis
        )
        assert row_error(build(real, nfe), shorter) <= TOLERANCE
        with pytest.raises(ValueError, match=f"step {nfe - 1} of the grid does not go forward"):
            S.unipc(theirs.grid)


class DDIMWithNoise(diffusers.DDIMScheduler):
    """DDIM whose pipelines would pass eta to every step."""

    eta = 1.0

    def step(self, model_output, timestep, sample, return_dict=True):
        return super().step(model_output, timestep, sample, eta=self.eta, return_dict=return_dict)


class DDIMWithSomeNoise(DDIMWithNoise):
    eta = 0.3


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("kind", "eta"),
    [(diffusers.DDIMScheduler, 0.0), (DDIMWithNoise, 1.0), (DDIMWithSomeNoise, 0.3)],
)
def test_ddim(kind, eta, prediction, nfe):
    scheduler = kind(**SD, clip_sample=False, prediction_type=prediction)
    scheduler.set_timesteps(nfe)
    theirs = S.trace(scheduler)
    assert theirs.stochastic == (eta > 0 and nfe > 1)
    assert row_error(S.ddim(steps_of(theirs), eta), theirs) <= TOLERANCE


@pytest.mark.parametrize("nfe", [1, 2, 5, 10, 50])
def test_ddim_from_pure_noise(nfe):
    """Zero terminal SNR, which needs v and trailing nodes (these nfe divide 1000)."""
    scheduler = diffusers.DDIMScheduler(
        **SD,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(nfe)
    theirs = S.trace(scheduler)
    assert theirs.grid.lam[0] == -np.inf
    assert row_error(S.ddim(theirs.grid), theirs) <= TOLERANCE


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance, nfe):
    case = Case(
        "DDPMScheduler",
        lambda g: S.ddpm(g, variance),
        {**SD, "clip_sample": False, "variance_type": f"fixed_{variance}"},
    )
    case.check(nfe)


# With one step and an offset PNDMScheduler has no time to repeat, and takes it once.
@pytest.mark.parametrize(
    ("offset", "nfe"), [(o, n) for o in (0, 1) for n in NFES if (o, n) != (1, 1)]
)
def test_pndm_with_a_repeated_first_step(offset, nfe):
    case = Case("PNDMScheduler", S.pndm, {**SD, "skip_prk_steps": True, "steps_offset": offset})
    # Without an offset the last step would end where it begins, at alphas_cumprod[0].
    case.check(nfe, set_alpha_to_one=offset == 0)


# From 4 steps on, and with an even number of training steps each: see the defects.
@pytest.mark.parametrize("nfe", [4, 5, 10, 20, 50])
def test_pndm_with_runge_kutta_steps(nfe):
    scheduler = diffusers.PNDMScheduler(**SD, skip_prk_steps=False, set_alpha_to_one=True)
    scheduler.set_timesteps(nfe)
    theirs = S.trace(scheduler)
    times = [*steps_of(theirs).time[:-1], -1]
    # Midpoints in time need the schedule.
    ours = S.pndm(Grid.from_times(levels_of(scheduler), times), "rk4")
    assert row_error(ours, theirs) <= TOLERANCE
    assert theirs.nfe == nfe + 9


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_ipndm(end, nfe):
    # `trained_betas` are the sigmas of its states; the first must leave some signal.
    sigmas = np.append(np.sin(np.linspace(1.4, 0.1, nfe)), end)
    scheduler = diffusers.IPNDMScheduler(trained_betas=sigmas.tolist())
    scheduler.set_timesteps(nfe)
    theirs = S.trace(scheduler)
    assert row_error(S.ipndm(theirs.grid), theirs) <= TOLERANCE


# States in EDM form, x0 + sigma eps.
SIGMA_SPACE = {
    "euler": Case("EulerDiscreteScheduler", S.ddim, SD),
    "euler-ancestral": Case("EulerAncestralDiscreteScheduler", lambda g: S.ddim(g, 1.0), SD),
    "heun": Case("HeunDiscreteScheduler", S.heun, SD),
    "kdpm2": Case("KDPM2DiscreteScheduler", S.dpm2, SD),
    "lms": Case("LMSDiscreteScheduler", lambda g: S.deis(g, 4, "rho", False), SD),
}


def in_sigma_space() -> Iterator[Any]:
    for name in SIGMA_SPACE:
        for spacing in ("plain", "trailing-v", "karras", "exponential", "beta-v"):
            if name == "euler-ancestral" and spacing not in ("plain", "trailing-v"):
                # It has no such spacings.
                continue
            for nfe in NFES:
                # One spends its time on making the scheduler, the other on integrals in every step.
                slow = name == "kdpm2" and spacing in ("exponential", "beta-v")
                slow |= name == "lms" and nfe > 10
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(name, spacing, nfe, marks=marks, id=f"{name}-{spacing}-{nfe}")


@pytest.mark.parametrize(("name", "spacing", "nfe"), list(in_sigma_space()))
def test_sigma_space(name, spacing, nfe):
    SIGMA_SPACE[name].check(nfe, **SPACINGS[spacing])


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize(
    ("kind", "config", "build"),
    [
        ("EDMEulerScheduler", {}, S.ddim),
        *[
            (
                "EDMDPMSolverMultistepScheduler",
                {"solver_order": p, "solver_type": form},
                lambda g, p=p, form=form: S.dpm(g, p, form=form, lower_final=few(g)),
            )
            for p in (1, 2, 3)
            for form in ("midpoint", "heun")
        ],
        *[
            (
                "EDMDPMSolverMultistepScheduler",
                {"solver_order": p, "solver_type": form, "algorithm_type": "sde-dpmsolver++"},
                lambda g, p=p, form=form: S.sde_dpm(g, p, form=form, lower_final=few(g)),
            )
            for p in (1, 2)
            for form in ("midpoint", "heun")
        ],
    ],
)
def test_edm(kind, config, build, schedule, nfe):
    # Outputs of both kinds are F of Karras et al. 2022, up to a sign.
    prediction = "epsilon" if schedule == "karras" else "v_prediction"
    Case(kind, build, config).check(nfe, sigma_schedule=schedule, prediction_type=prediction)


@pytest.mark.parametrize("nfe", NFES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("FlowMatchEulerDiscreteScheduler", "ddim"), ("FlowMatchHeunDiscreteScheduler", "heun-flow")],
)
def test_flow_matching(kind, name, shift, nfe):
    case = Case(kind, lambda g: S.build(name, g))
    case.check(nfe, shift=shift)
    # And under the name that users of diffusers know.
    assert S.solver(kind).name == name


@pytest.mark.parametrize("nfe", [1, 4, 10])
def test_flow_matching_with_given_sigmas(nfe):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / nfe, nfe), mu=1.15)
    theirs = S.trace(scheduler)
    assert row_error(S.ddim(theirs.grid), theirs) <= TOLERANCE


@pytest.mark.parametrize("nfe", [5, 10, 20])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_dpm2_ancestral(spacing, nfe):
    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(**SD, **SPACINGS[spacing])
    scheduler.set_timesteps(nfe)
    theirs = S.trace(scheduler)
    # Its levels below the next are differences of float32 squares.
    assert row_error(S.dpm2_ancestral(steps_of(theirs)), theirs) <= 1e-5


@pytest.mark.parametrize("nfe", [1, 2, 5, 10])
@pytest.mark.parametrize("spacing", ["plain", "karras", "trailing-v"])
def test_dpmpp_sde(spacing, nfe):
    """Brownian noise is traced as such: the second increment of a step contains the first."""
    case = Case("DPMSolverSDEScheduler", S.dpmpp_sde, SD)
    case.check(nfe, **SPACINGS[spacing])


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10])
@pytest.mark.parametrize(("order", "form"), [(2, "midpoint"), (2, "heun"), (3, "midpoint")])
def test_singlestep_sde(order, form, nfe):
    """Every state, also a stage, gets noise of its own. (Their heun of order 3 is another rule.)"""
    case = Case(
        "DPMSolverSinglestepScheduler",
        lambda g: S.dpm_singlestep(g, order, form=form, eta=1.0),
        {
            **SD,
            "algorithm_type": "sde-dpmsolver++",
            "solver_order": order,
            "solver_type": form,
            "lower_order_final": True,
        },
    )
    case.check(nfe)


@pytest.mark.parametrize("begin", [1, 3, 7])
@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_run_that_begins_late(kind, begin):
    """Its history starts there, and its last rows are those of the whole run."""
    scheduler = getattr(diffusers, kind)(**SD)
    scheduler.set_timesteps(10)
    whole, late = S.trace(scheduler), S.trace(scheduler, begin=begin)
    assert late.grid.nfe == 10 - begin
    np.testing.assert_array_equal(late.grid.lam, whole.grid.lam[begin:])
    assert np.count_nonzero(late.weights[0]) == 1
    np.testing.assert_allclose(late.weights[-1, -3:], whole.weights[-1, -3:], atol=1e-12)
    build = S.dpm if kind.startswith("DPM") else S.unipc
    assert row_error(build(late.grid, 2), late) <= TOLERANCE


SAMPLED = {
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "singlestep": ("DPMSolverSinglestepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLED)
def test_a_traced_table_samples_like_the_original(name, prediction):
    """The whole way, with a network that is not linear and reads its input's scale and label."""
    kind, config = SAMPLED[name]
    scheduler = getattr(diffusers, kind)(**{**SD, **config, "prediction_type": prediction})
    scheduler.set_timesteps(6)
    table = S.trace(scheduler)

    def network(x, t):
        return torch.tanh(x + x.flip(-1) / 2) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn((2, 3, 4, 4), generator=generator, dtype=torch.float64)
    start = start * float(scheduler.init_noise_sigma)
    x = start
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        out = network(given, torch.as_tensor(float(t)).expand(2))
        x = scheduler.step(out, t, x, return_dict=False)[0]
    denoiser = S.denoiser(network, levels_of(scheduler), "eps" if prediction == "epsilon" else "v")
    ours = fewstep.sample(denoiser, table, start)
    assert float((ours - x).abs().max()) <= 2e-4 * float(x.abs().max())
