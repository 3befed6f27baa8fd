"""From the config of one class to another, and back."""

from __future__ import annotations

import diffusers
import pytest
import torch
from fewstep import TableauScheduler

from .peers import SD


def test_the_class_that_a_user_switched_to_counts():
    """A scheduler of theirs that was made from a config of ours carries our keys along."""
    ours = TableauScheduler(**SD, like="EulerDiscreteScheduler", solver="ddim")
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(
        ours.config, algorithm_type="sde-dpmsolver++", solver_order=3
    )
    again = TableauScheduler.from_config(theirs.config)
    assert again.config["like"] == "DPMSolverMultistepScheduler"
    assert again.config["solver"] is None
    assert again.config["algorithm_type"] == "sde-dpmsolver++"
    assert again.config["solver_order"] == 3


def test_a_config_of_ours_comes_back_whole():
    ours = TableauScheduler(**SD, solver="unipc-3", spacing="karras", prediction_type="sample")
    theirs = diffusers.UniPCMultistepScheduler.from_config(ours.config)
    assert theirs.config["prediction_type"] == "sample"
    same = TableauScheduler.from_config(ours.config)
    assert same.config["spacing"] == "karras"
    assert {**same.config} == {**ours.config}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_flow_config_goes_to_a_class_of_both_worlds(dynamic):
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    ours = TableauScheduler.from_config(flow.config, like="UniPCMultistepScheduler")
    assert ours.config["prediction_type"] == "flow_prediction"
    ours.set_timesteps(sigmas=[1.0, 0.5, 0.2], mu=1.0)
    flow.set_timesteps(sigmas=[1.0, 0.5, 0.2], mu=1.0)
    torch.testing.assert_close(ours.sigmas, flow.sigmas, rtol=1e-5, atol=1e-5)


def test_keys_with_a_meaning_for_the_other_class_are_kept():
    config = diffusers.UniPCMultistepScheduler(**SD, use_karras_sigmas=True, solver_order=3).config
    ddim = TableauScheduler.from_config(config, like="DDIMScheduler")
    assert ddim.config["use_karras_sigmas"]
    assert "solver_order" not in ddim.config


@pytest.mark.parametrize(
    ("kind", "like"),
    [
        ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"),
        ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("EDMEulerScheduler", "DDIMScheduler"),
    ],
)
def test_noise_levels_of_another_kind_are_refused(kind, like):
    config = getattr(diffusers, kind)().config
    with pytest.raises(ValueError, match=r"noise levels|x0 \+ sigma eps"):
        TableauScheduler.from_config(config, like=like)


@pytest.mark.parametrize(
    ("kind", "type_of_theirs"),
    [("DEISMultistepScheduler", "logrho"), ("DPMSolverMultistepScheduler", "midpoint")],
)
def test_values_of_another_class_mean_the_default(kind, type_of_theirs):
    """Classes of diffusers write their own value into a config that comes along."""
    ours = TableauScheduler(like="UniPCMultistepScheduler", **SD)
    theirs = getattr(diffusers, kind).from_config(ours.config)
    assert theirs.config["solver_type"] == type_of_theirs
    back = TableauScheduler.from_config(theirs.config)
    assert back.config["like"] == "UniPCMultistepScheduler"
    assert back.config["solver_type"] == "bh2"
    with pytest.raises(ValueError, match="solver_type must be one of bh1, bh2"):
        TableauScheduler(like="UniPCMultistepScheduler", solver_type=type_of_theirs)
