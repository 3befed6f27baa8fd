"""Tracing itself: sampling functions in the style of k-diffusion, refusals, side effects."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers as S
from fewstep.schedules import EDM, Grid

from .helpers import SD, row_error


def sample_euler(model, x, sigmas, disable=None):
    """Karras et al. 2022, algorithm 1 without its second-order part."""
    for level, following in pairwise(sigmas):
        slope = (x - model(x, level * x.new_ones(len(x)))) / level
        x = x + (following - level) * slope
    return x


def sample_heun(model, x, sigmas):
    """Karras et al. 2022, algorithm 1."""
    for level, following in pairwise(sigmas):
        slope = (x - model(x, level)) / level
        reached = x + (following - level) * slope
        if following > 0:
            second = (reached - model(reached, following)) / following
            reached = x + (following - level) * (slope + second) / 2
        x = reached
    return x


def sample_dpmpp_2m(model, x, sigmas, disable=None):
    """Lu et al. 2022, "DPM-Solver++", algorithm 2, on t = -log sigma."""
    earlier, span = None, None
    for level, following in pairwise(sigmas):
        x0 = model(x, level)
        if following == 0:
            return x0
        h = math.log(level / following)
        guess = x0
        if earlier is not None:
            r = span / h
            guess = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * earlier
        x = (following / level) * x - math.expm1(-h) * guess
        earlier, span = x0, h
    return x


def sample_euler_ancestral(model, x, sigmas, noise_sampler=None):
    """Song et al. 2021 at eta = 1: step down to sigma_down, add noise back up."""
    for level, following in pairwise(sigmas):
        x0 = model(x, level)
        up = min(following, (following**2 * (level**2 - following**2) / level**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x + (down - level) * (x - x0) / level
        if following > 0:
            x = x + up * noise_sampler(level, following)
    return x


def sample_ancestral_with_global_noise(model, x, sigmas):
    """The same, drawing as many programs do: with torch.randn_like."""
    return sample_euler_ancestral(model, x, sigmas, lambda *_: torch.randn_like(x))


def sample_midpoint(model, x, sigmas):
    """The midpoint method in log sigma, DPM-Solver-2 of k-diffusion."""
    for level, following in pairwise(sigmas):
        slope = (x - model(x, level)) / level
        if following == 0:
            x = x - level * slope
            continue
        middle = (level * following) ** 0.5
        inside = x + (middle - level) * slope
        x = x + (following - level) * (inside - model(inside, middle)) / middle
    return x


FUNCTIONS = {
    "euler": (sample_euler, S.ddim),
    "heun": (sample_heun, S.heun),
    "dpmpp-2m": (sample_dpmpp_2m, lambda g: S.dpm(g, 2, lower_final=False)),
    "euler-ancestral": (sample_euler_ancestral, lambda g: S.ddim(g, eta=1.0)),
    "global-noise": (sample_ancestral_with_global_noise, lambda g: S.ddim(g, eta=1.0)),
    "dpm-2": (sample_midpoint, S.dpm2),
}


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_its_builder(name, nfe, end):
    function, build = FUNCTIONS[name]
    grid = fewstep.grid(EDM(0.03, 15.0), nfe, "karras", end=end)
    theirs = S.trace(function, grid.sigma.tolist())
    ours = build(grid)
    assert row_error(ours, theirs) <= 1e-12
    np.testing.assert_allclose(theirs.grid.sigma, ours.grid.sigma, rtol=1e-13)
    assert (theirs.grid.stage == ours.grid.stage).all()
    assert theirs.nfe == ours.nfe


def test_a_traced_function_samples_like_the_original():
    grid = fewstep.grid(EDM(0.03, 15.0), 7, "karras")
    x = torch.randn((2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 15

    def model(x, sigma):
        return torch.tanh(x) / (1 + sigma)

    sigmas = torch.from_numpy(grid.sigma.copy())
    table = S.trace(sample_dpmpp_2m, sigmas.tolist())
    ours = fewstep.sample(lambda x, node: model(x, node.sigma), table, x)
    assert torch.allclose(ours, sample_dpmpp_2m(model, x, sigmas), rtol=1e-12, atol=1e-12)


def clipped(model, x, sigmas):
    """Euler on clipped predictions."""
    return sample_euler(lambda x, s: model(x, s).clamp(-1, 1), x, sigmas)


def normed(model, x, sigmas):
    """Euler with steps that depend on the state."""
    return sample_euler(lambda x, s: model(x, s) * (1 + x.abs().mean()), x, sigmas)


def drawing_twice(model, x, sigmas):
    """Two draws after one call."""
    x = model(x, sigmas[0])
    return x + torch.randn_like(x) + torch.randn_like(x)


@pytest.mark.parametrize("function", [clipped, normed])
def test_functions_that_are_not_linear_are_refused(function):
    with pytest.raises(ValueError, match=f"trace: {function.__name__} is not linear"):
        S.trace(function, [10.0, 1.0, 0.0])


def test_two_draws_between_calls_are_refused():
    with pytest.raises(ValueError, match="draws noise twice"):
        S.trace(drawing_twice, [10.0, 0.0])


NOT_LINEAR = [
    ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ("UniPCMultistepScheduler", {"thresholding": True}),
    ("DDIMScheduler", {"thresholding": True, "clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": True}),
    ("DDPMScheduler", {"clip_sample": True}),
    ("HeunDiscreteScheduler", {"clip_sample": True}),
]


@pytest.mark.parametrize(("kind", "config"), NOT_LINEAR)
@pytest.mark.parametrize("nfe", [1, 4])
def test_schedulers_that_clip_are_refused(kind, config, nfe):
    scheduler = getattr(diffusers, kind)(**SD, **config)
    scheduler.set_timesteps(nfe)
    with pytest.raises(
        ValueError, match=f"{kind} is not linear: .*switch off thresholding and clip_sample"
    ):
        S.trace(scheduler)


UNCHANGED = [
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
]


def contents(scheduler) -> dict:
    """Everything a scheduler holds, tensors as lists with their dtype."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return str(value.dtype), value.tolist()
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.tolist()
        return copy.deepcopy(value)

    return {key: plain(value) for key, value in vars(scheduler).items()}


@pytest.mark.parametrize(("kind", "config"), UNCHANGED)
def test_tracing_leaves_the_scheduler_and_the_world_alone(kind, config):
    scheduler = getattr(diffusers, kind)(**SD, **config)
    scheduler.set_timesteps(5)
    before, seed = contents(scheduler), torch.get_rng_state()
    first = S.trace(scheduler)
    assert contents(scheduler) == before
    assert torch.equal(torch.get_rng_state(), seed)
    assert row_error(S.trace(scheduler), first) == 0
    # Noise is real again after it was replaced for the tracing.
    drawn = [diffusers.utils.torch_utils.randn_tensor((4,)) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_tables_in_edm_form_find_their_way_to_any_network():
    """States of Euler are x0 + sigma eps; a variance-preserving network wants them scaled."""
    scheduler = diffusers.EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(4)
    table = S.trace(scheduler)
    assert isinstance(table.grid.schedule, EDM)
    again = Grid.from_times(table.grid.schedule, table.grid.time)
    np.testing.assert_allclose(again.lam, table.grid.lam, rtol=1e-12)


def test_what_is_not_a_sampler_is_refused():
    with pytest.raises(ValueError, match="call set_timesteps"):
        S.trace(diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match="sampling function and its sigmas"):
        S.trace(sample_euler)
    with pytest.raises(ValueError, match="sampling function and its sigmas"):
        S.trace("euler", [1.0, 0.0])


def test_repeated_levels_are_refused_by_step():
    config = {**SD, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**config, solver_type="heun")
    scheduler.set_timesteps(20)
    with pytest.raises(ValueError, match="step 19 of DPMSolverMultistepScheduler is not finite"):
        S.trace(scheduler)
    scheduler = diffusers.UniPCMultistepScheduler(**config)
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match=r"node 1 .* repeats node 0"):
        S.trace(scheduler)
