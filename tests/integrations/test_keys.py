"""The keys of a config."""

from __future__ import annotations

import pytest
from fewstep import TableauScheduler


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"like": "EulerScheduler"}, "EulerDiscreteScheduler"),
        ({"predictor_order": 3}, "predictor_order: DPMSolverMultistepScheduler has no such key"),
        ({"solver": "unipc-3", "solver_order": 2}, "solver_order.*say how to step"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
        ({"solver": "ddim", "compat": "diffusers"}, "contradict"),
        ({"compat": "k-diffusion"}, "compat must be"),
        ({"like": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}, "the generator"),
        ({"like": "HeunDiscreteScheduler", "use_flow_sigmas": True}, "choose a class"),
        ({"solver": "unipcc"}, "unknown solver"),
        ({"spacing": "karas"}, "unknown spacing"),
        ({"nfe": 2.5}, "whole number"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(ValueError, match=message):
        TableauScheduler(**keys)
