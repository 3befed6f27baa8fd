"""Where the nodes of a run are, from the keys of a config."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler

from .peers import SD, finish, start


@pytest.mark.parametrize(
    "kind", ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]
)
def test_with_a_solver_the_nodes_carry_over_and_only_the_method_changes(kind):
    original = getattr(diffusers, kind)(**SD, timestep_spacing="trailing")
    original.set_timesteps(8)
    ours = TableauScheduler.from_config(original.config, solver="unipc-3")
    ours.set_timesteps(8)
    assert len(ours.timesteps) == 8
    assert "solver_order" not in ours.config
    if kind != "PNDMScheduler":
        torch.testing.assert_close(ours.timesteps.float(), original.timesteps.float())


def test_a_flow_config_goes_to_any_solver():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    ours = TableauScheduler.from_config(config, solver="dpmpp-2m")
    ours.set_timesteps(sigmas=np.linspace(1, 0.25, 4), mu=0.5)
    s = np.linspace(1, 0.25, 4)
    np.testing.assert_allclose(ours.sigmas[:-1], 3 * s / (1 + 2 * s), rtol=1e-6)
    assert ours.sigmas[-1] == 0
    x = finish(ours, start(ours))
    assert x.isfinite().all()
    noisy = ours.scale_noise(torch.ones(2, 1), ours.timesteps[1:2].repeat(2), torch.zeros(2, 1))
    torch.testing.assert_close(noisy, torch.full((2, 1), 1 - float(ours.sigmas[1])))


def test_continuous_times_of_euler_are_logarithms():
    keys = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    original = diffusers.EulerDiscreteScheduler(**SD, **keys, use_karras_sigmas=True)
    original.set_timesteps(6)
    ours = TableauScheduler.from_config(original.config)
    ours.set_timesteps(6)
    torch.testing.assert_close(ours.timesteps, original.timesteps, rtol=1e-4, atol=1e-5)


def test_log_linear_nodes_of_euler_carry_the_times_of_their_levels():
    """Theirs are the same levels under evenly spaced times."""
    original = diffusers.EulerDiscreteScheduler(**SD, interpolation_type="log_linear")
    original.set_timesteps(6)
    ours = TableauScheduler.from_config(original.config)
    ours.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, original.sigmas[:7], rtol=1e-4, atol=1e-5)
    levels = ((1 - ours.alphas_cumprod) / ours.alphas_cumprod).sqrt()
    near = levels[ours.timesteps.round().long()]
    assert ((ours.sigmas[:-1] / near).log().abs() < 0.02).all()


def test_timesteps_count_more_than_a_rule_for_them():
    scheduler = TableauScheduler(
        **SD, like="EulerDiscreteScheduler", interpolation_type="log_linear"
    )
    scheduler.set_timesteps(timesteps=[900, 500, 3])
    assert scheduler.timesteps.tolist() == [900, 500, 3]
    alpha2 = scheduler.alphas_cumprod[[900, 500, 3]]
    torch.testing.assert_close(scheduler.sigmas[:-1], ((1 - alpha2) / alpha2).sqrt())


def test_dynamic_shifting_takes_mu():
    scheduler = TableauScheduler(
        like="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, shift=3.0
    )
    with pytest.raises(ValueError, match="needs mu"):
        scheduler.set_timesteps(4)
    scheduler.set_timesteps(4, mu=1.0)
    s = np.linspace(1, 0.001, 4)
    expected = np.e / (np.e + 1 / s - 1)
    np.testing.assert_allclose(scheduler.sigmas[:-1], expected, rtol=1e-5)


def test_a_thousand_steps_repeat_no_node():
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(1000)
    assert (scheduler.sigmas.diff() < 0).all()


def test_no_network_is_asked_at_a_time_below_zero():
    """Heun asks at the end of its last step, where that is the first level and not clean data."""
    for solver in ("heun", "heun-flow", "deis-rho-rk4"):
        scheduler = TableauScheduler(
            **SD, like="PNDMScheduler", set_alpha_to_one=False, solver=solver
        )
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.min() == 0


@pytest.mark.parametrize("kind", ["DDIM", "DEISMultistep", "EulerDiscrete", "DPMSolverMultistep"])
def test_sigmas_that_are_given_run_on_to_clean_data(kind):
    keys = {"set_alpha_to_one": False} if kind == "DDIM" else {}
    scheduler = TableauScheduler(**SD, like=f"{kind}Scheduler", **keys)
    scheduler.set_timesteps(sigmas=[14.0, 5.0, 1.0, 0.3])
    assert scheduler.sigmas.tolist() == pytest.approx([14.0, 5.0, 1.0, 0.3, 0.0])
    assert scheduler.num_inference_steps == 4
