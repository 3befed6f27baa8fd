"""The contract of a diffusers scheduler, beyond the samples."""

from __future__ import annotations

import diffusers
import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers, schedules
from fewstep.integrations.families import FAMILIES

from .peers import SD, finish, network, start


@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-2m", "heun", "deis-tab3", "dpmpp-2s"])
def test_a_named_solver_samples_as_the_stateless_way_does(name):
    """The scheduler is an adapter: the same table, run by hand, gives the same."""
    scheduler = TableauScheduler(**SD, solver=name, spacing="karras", prediction_type="sample")
    scheduler.set_timesteps(6)
    schedule, prediction = samplers.from_diffusers_config({**SD, "prediction_type": "sample"})
    grid = fewstep.grid(schedule, 6, "karras")
    table = samplers.build(name, grid)
    labels = iter(scheduler.timesteps)
    denoiser = samplers.denoiser(lambda x, _: network(x, next(labels)), schedule, prediction)
    x = start(scheduler)
    torch.testing.assert_close(
        finish(scheduler, x), fewstep.sample(denoiser, table, x), rtol=1e-5, atol=1e-6
    )


def test_a_timestep_is_found_by_its_place_not_by_its_value():
    """Rounded times repeat; a view into `timesteps` says which it is, on any device."""
    scheduler = TableauScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(60)
    twice = [i for i in range(59) if scheduler.timesteps[i] == scheduler.timesteps[i + 1]]
    assert twice
    assert [scheduler.index_for_timestep(scheduler.timesteps[i]) for i in twice] == twice
    assert scheduler.index_for_timestep(float(scheduler.timesteps[5])) == 5
    assert scheduler.index_for_timestep(-7) == 59
    meta = TableauScheduler(**SD)
    meta.set_timesteps(5, device="meta")
    assert [meta.index_for_timestep(t) for t in meta.timesteps] == [0, 1, 2, 3, 4]


def test_what_ddim_clips_stays_in_its_eps():
    """One step by hand: x' = alpha' clip(x0) + sigma' eps, with the eps of the network."""
    scheduler = TableauScheduler(like="DDIMScheduler", **SD, clip_sample=True)
    scheduler.set_timesteps(5)
    x, t, after = start(scheduler), *scheduler.timesteps[:2]
    eps = network(x, t)
    here, there = (scheduler.alphas_cumprod[int(each)] for each in (t, after))
    x0 = (x - (1 - here).sqrt() * eps) / here.sqrt()
    assert (x0.abs() > 1).any()
    expected = there.sqrt() * x0.clamp(-1, 1) + (1 - there).sqrt() * eps
    got = scheduler.step(eps, t, x)
    torch.testing.assert_close(got.prev_sample, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.pred_original_sample, x0.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_half_samples_get_noise_of_single_precision():
    scheduler = TableauScheduler(**SD)
    x0, noise, t = torch.randn(3, 64), torch.randn(3, 64), torch.tensor([0, 500, 999])
    half = scheduler.add_noise(x0.bfloat16(), noise.bfloat16(), t)
    assert half.dtype == torch.bfloat16
    exact = scheduler.add_noise(x0.bfloat16().float(), noise.bfloat16().float(), t)
    assert torch.equal(half, exact.bfloat16())


def test_learned_variances_are_left_aside_and_x0_is_in_the_output():
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(5)
    x, t = start(scheduler), scheduler.timesteps[0]
    out = network(x, t)
    wide = scheduler.step(torch.cat([out, out], 1), t, x)
    alpha2 = scheduler.alphas_cumprod[int(t)]
    x0 = (x - (1 - alpha2).sqrt() * out) / alpha2.sqrt()
    torch.testing.assert_close(wide.pred_original_sample, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sde-dpmpp-2m", "ddpm", "dpm-2-ancestral"])
def test_noise_is_per_sample_with_a_list_of_generators(name):
    scheduler = TableauScheduler(**SD, solver=name)

    def sampled(seeds):
        scheduler.set_timesteps(5)
        x = torch.cat([start(scheduler, seed)[:1] for seed in seeds])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return finish(scheduler, x, generator=generators)

    both = sampled([3, 4])
    torch.testing.assert_close(both[1:], sampled([4]), rtol=1e-5, atol=1e-6)


def test_given_noise_is_used():
    scheduler = TableauScheduler(**SD, solver="ddpm")
    scheduler.set_timesteps(5)
    x, t = start(scheduler), scheduler.timesteps[0]
    quiet = scheduler.step(network(x, t), t, x, variance_noise=torch.zeros_like(x)).prev_sample
    scheduler.set_timesteps(5)
    loud = scheduler.step(network(x, t), t, x, variance_noise=torch.ones_like(x)).prev_sample
    grid = scheduler._plan.table.grid
    added = float(grid.sigma[1] * np.sqrt(-np.expm1(-2 * (grid.lam[1] - grid.lam[0]))))
    torch.testing.assert_close(loud - quiet, torch.full_like(x, added), rtol=1e-4, atol=1e-5)


def test_add_noise_before_any_run_is_that_of_training():
    ours, theirs = TableauScheduler(**SD), diffusers.DDPMScheduler(**SD)
    x0, noise, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        ours.get_velocity(x0, noise, t), theirs.get_velocity(x0, noise, t), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", FAMILIES)
def test_levels_of_training_are_those_that_the_labels_name(kind):
    """Before any run `timesteps`, `sigmas` and `add_noise` speak of the same levels."""
    scheduler = TableauScheduler(like=kind)
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    assert scheduler.sigmas[-1] == 0
    t = scheduler.timesteps[[5, 300, -1]]
    x0, noise = torch.zeros(3, 1), torch.ones(3, 1)
    sigma = scheduler.add_noise(x0, noise, t).flatten()
    alpha = scheduler.add_noise(noise, x0, t).flatten()
    said = scheduler.sigmas[[5, 300, -2]]
    ratio = sigma if kind.startswith("FlowMatch") else sigma / alpha
    torch.testing.assert_close(ratio, said, rtol=2e-3, atol=1e-6)


def test_a_time_that_comes_twice_is_the_same_for_steps_and_noise():
    scheduler = TableauScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(60)
    twice = next(i for i in range(59) if scheduler.timesteps[i] == scheduler.timesteps[i + 1])
    t = float(scheduler.timesteps[twice])
    assert scheduler.index_for_timestep(t) == twice + 1
    noised = scheduler.add_noise(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([t]))
    sigma = scheduler.sigmas[twice + 1]
    torch.testing.assert_close(noised[0, 0], sigma / (1 + sigma**2).sqrt())


@pytest.mark.parametrize(
    ("like", "law"),
    [
        ("DDIMScheduler", None),
        ("EulerDiscreteScheduler", None),
        ("EDMEulerScheduler", schedules.EDM()),
        ("FlowMatchEulerDiscreteScheduler", schedules.FlowMatching()),
    ],
)
def test_a_table_that_begins_late_starts_from_noise_and_data_of_there(like, law):
    """Whatever the form, the state is alpha x0 + sigma eps; x0 and eps of deviation 1."""
    law = law or samplers.from_diffusers_config(SD)[0]
    late = fewstep.grid(law, 8, "uniform").tail(3)
    config = SD if like in ("DDIMScheduler", "EulerDiscreteScheduler") else {}
    scheduler = TableauScheduler(
        like=like, **config, tableau=samplers.build("ddim", late).to_dict()
    )
    scheduler.set_timesteps(5)
    x0, eps = torch.randn(2, 1000, 100, generator=torch.Generator().manual_seed(0))
    noised = scheduler.add_noise(x0, eps, scheduler.timesteps[:1].expand(1000))
    assert float(scheduler.init_noise_sigma) == pytest.approx(float(noised.std()), rel=0.01)
