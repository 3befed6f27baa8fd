"""Runs: which there are, where they begin, and which are refused."""

from __future__ import annotations

import diffusers
import pytest
import torch
from fewstep import TableauScheduler

from .peers import SD, Ask, finish, run, start


def test_the_history_starts_where_the_run_begins():
    scheduler = TableauScheduler(**SD, solver="unipc-3")
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(6)
    x = start(scheduler)
    late = finish(scheduler, x, 6)
    # By value, without being told: the same rows.
    scheduler.set_timesteps(10)
    torch.testing.assert_close(finish(scheduler, x, 6), late, rtol=0, atol=0)
    assert scheduler.step_index == 10
    # As a fresh run over the nodes that are left.
    fresh = TableauScheduler(**SD, solver="unipc-3")
    fresh.set_timesteps(sigmas=scheduler.sigmas[6:].tolist())
    torch.testing.assert_close(finish(fresh, x), late, rtol=1e-5, atol=1e-5)


def test_a_run_told_to_begin_inside_a_step_waits_for_the_next():
    """Pipelines that count in steps of one evaluation land there."""

    def late(begin):
        scheduler = TableauScheduler(**SD, like="HeunDiscreteScheduler")
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(begin)
        return finish(scheduler, start(scheduler), begin)

    torch.testing.assert_close(late(3), late(4))
    assert not torch.allclose(late(4), late(6))


def test_img2img_with_two_evaluations_a_step():
    ask = Ask("HeunDiscreteScheduler", SD, 6, 4)
    ours = TableauScheduler.from_config(ask.original().config, like=ask.kind)
    assert ours.order == 2
    x, expected = run(ours, ask), run(ask.original(), ask)
    assert len(ours.timesteps) == 11
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-4)


def test_impossible_runs_are_refused():
    scheduler = TableauScheduler(**SD)
    with pytest.raises(ValueError, match="give num_inference_steps"):
        scheduler.set_timesteps()
    with pytest.raises(ValueError, match="at least 1 step"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="different numbers of steps"):
        scheduler.set_timesteps(5, timesteps=[900, 500])
    with pytest.raises(ValueError, match="without sigmas"):
        TableauScheduler(like="IPNDMScheduler").set_timesteps(sigmas=[0.9, 0.5])
    with pytest.raises(ValueError, match="without timesteps"):
        TableauScheduler(like="EDMEulerScheduler").set_timesteps(timesteps=[0.9, 0.5])
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="cannot begin at 3"):
        scheduler.set_begin_index(3)
    finish(scheduler, start(scheduler))
    with pytest.raises(ValueError, match="the run is over"):
        scheduler.step(torch.ones(1, 4, 4, 4), 0, torch.ones(1, 4, 4, 4))
    with pytest.raises(ValueError, match="use_karras_sigmas: it places the nodes itself"):
        TableauScheduler(**SD, use_karras_sigmas=True).set_timesteps(timesteps=[900, 500, 3])
    with pytest.raises(ValueError, match="a ramp from 0 to 1"):
        TableauScheduler(like="EDMEulerScheduler").set_timesteps(sigmas=[80.0, 5.0, 0.2])
    with pytest.raises(ValueError, match="no scheduler class that is known"):
        TableauScheduler.from_config({"poem": 1})
    with pytest.warns(UserWarning, match="KDPM2"):
        TableauScheduler.from_config(diffusers.KDPM2DiscreteScheduler().config)


def test_sigmas_whose_last_is_the_end_are_one_step_fewer():
    scheduler = TableauScheduler(**SD, like="EulerDiscreteScheduler", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(sigmas=[10.0, 5.0, 1.0, 0.3])
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 3
    scheduler.set_begin_index(1)
    assert finish(scheduler, start(scheduler), 1).isfinite().all()


@pytest.mark.parametrize("begin", [1, 2, 3, 4])
def test_a_warm_up_belongs_to_the_start(begin):
    """PNDM takes its first step twice; a run that begins late is iPNDM on what is left."""
    pndm = TableauScheduler(**SD, solver="pndm")
    pndm.set_timesteps(4)
    pndm.set_begin_index(begin)
    x = start(pndm)
    late = finish(pndm, x, begin)
    rest = TableauScheduler(**SD, solver="ipndm-4")
    # The first two rows are at the nodes of one step, and again at its end.
    rest.set_timesteps(sigmas=pndm.sigmas[max(begin, 2) :].tolist())
    torch.testing.assert_close(late, finish(rest, x), rtol=1e-4, atol=1e-4)
