"""The keys of a config."""

from __future__ import annotations

import pytest
import torch
from fewstep import TableauScheduler


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"like": "EulerScheduler"}, "EulerDiscreteScheduler"),
        ({"predictor_order": 3}, "predictor_order: DPMSolverMultistepScheduler has no such key"),
        ({"solver": "unipc-3", "solver_order": 2}, "solver_order and solver both say how"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
        ({"solver": "ddim", "compat": "diffusers"}, "contradict"),
        ({"compat": "k-diffusion"}, "compat must be"),
        ({"like": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}, "the generator"),
        ({"like": "HeunDiscreteScheduler", "use_flow_sigmas": True}, "choose a class"),
        ({"solver": "unipcc"}, "unknown solver"),
        ({"solver": "unipc-3", "solver_options": {"foo": 1}}, "foo.*its options are order"),
        ({"spacing": "karras", "spacing_options": {"rh": 5}}, "rh is none of end, multistep"),
        ({"spacing": "karas"}, "unknown spacing"),
        ({"nfe": 2.5}, "whole number"),
        ({"nfe": 8.0}, "whole number"),
        ({"algorithm_type": "foo"}, "algorithm_type must be one of dpmsolver"),
        ({"timestep_spacing": "evenly"}, "timestep_spacing must be one of linspace"),
        ({"like": "EDMEulerScheduler", "use_karras_sigmas": True}, "has no such key"),
        ({"like": "IPNDMScheduler", "use_flow_sigmas": True}, "has no such key"),
        ({"like": "FlowMatchEulerDiscreteScheduler", "timestep_spacing": "trailing"}, "no such"),
        (
            {"spacing": "karras", "use_beta_sigmas": True},
            "use_beta_sigmas and spacing both say",
        ),
        ({"spacing": "karras", "compat": "diffusers"}, "contradict"),
        ({"spacing": "karras", "tableau": {}}, "contradict"),
        ({"compat": "diffusers", "shift_terminal": 0.1}, "has no shift_terminal"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        TableauScheduler(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"solver_options": {"order": 2}}, "solver_options.* without solver"),
        ({"spacing_options": {"rho": 2}}, "spacing_options.* without spacing"),
        ({"flow_shift": 3.0}, "flow_shift=3.0 says nothing without use_flow_sigmas"),
        ({"sigma_max": 10.0}, "sigma_max=10.0 says nothing"),
        ({"clip_sample_range": 2.0}, "without clip_sample"),
    ],
)
def test_keys_that_say_nothing_alone_are_named(keys, message):
    with pytest.warns(UserWarning, match=message):
        TableauScheduler(**keys)


def test_flow_keys_of_a_class_that_has_none():
    """DDIM on a flow: shifted as everywhere, with the defaults of flows."""
    scheduler = TableauScheduler(
        like="DDIMScheduler", use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[-1] == 0
    shifted = TableauScheduler.from_config(scheduler.config, flow_shift=3.0)
    shifted.set_timesteps(4)
    s = scheduler.sigmas
    torch.testing.assert_close(shifted.sigmas, 3 * s / (1 + 2 * s))
