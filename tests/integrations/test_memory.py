"""What is remembered between two steps."""

from __future__ import annotations

import diffusers
import pytest
import torch
from fewstep import TableauScheduler

from .peers import SD, finish, network, start


def test_a_changed_sample_counts_where_it_was_changed():
    """In half precision the state goes on unrounded, but for what a pipeline put into it."""
    scheduler = TableauScheduler(**SD, solver="ddim", prediction_type="sample")
    scheduler.set_timesteps(4)
    x = start(scheduler)
    half = scheduler.step(x.bfloat16(), scheduler.timesteps[0], x).prev_sample
    whole = TableauScheduler(**SD, solver="ddim", prediction_type="sample")
    whole.set_timesteps(4)
    exact = whole.step(x.bfloat16().float(), whole.timesteps[0], x).prev_sample
    assert not torch.equal(half.float(), exact)
    # With x0 = 0 a step is a multiple of the state that it starts from.
    changed = half.clone()
    changed[:1] = 2.0
    after = scheduler.step(torch.zeros_like(x), scheduler.timesteps[1], changed).prev_sample
    carry = float(after[0, 0, 0, 0]) / 2
    torch.testing.assert_close(after[:1], torch.full_like(after[:1], 2 * carry))
    torch.testing.assert_close(after[1:], exact[1:] * carry, rtol=1e-6, atol=0)


def test_the_same_row_once_more():
    """A pipeline that takes the index back steps from the same history."""
    scheduler = TableauScheduler(**SD, solver="dpmpp-3m")
    scheduler.set_timesteps(6)
    x = start(scheduler)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    t = scheduler.timesteps[3]
    once = scheduler.step(network(x, t), t, x).prev_sample
    scheduler._step_index -= 1
    again = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(once, again)


def test_only_the_step_before_can_be_taken_again():
    scheduler = TableauScheduler(**SD, solver="unipc-3")
    scheduler.set_timesteps(6)
    finish(scheduler, start(scheduler))
    assert scheduler.model_outputs == []
    scheduler._step_index -= 1
    with pytest.raises(ValueError, match="step by step, or one back: it is at 5, and 4"):
        scheduler._step_index -= 1
    with pytest.raises(ValueError, match="and 2 was asked for"):
        scheduler._step_index = 2
    scheduler._step_index = None
    assert scheduler.step_index is None


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("heun", "epsilon"), ("dpmpp-2s", "sample"), ("dpm-2-ancestral", "epsilon")],
)
def test_what_a_pipeline_writes_into_a_stage_is_not_in_the_state(name, prediction):
    """Only the network sees it, and this one returns the same whatever it sees."""

    def last(write):
        scheduler = TableauScheduler(**SD, solver=name, prediction_type=prediction)
        scheduler.set_timesteps(4)
        stage = scheduler._plan.table.grid.stage
        x = start(scheduler)
        for n, t in enumerate(scheduler.timesteps):
            out = torch.full_like(x, float(n))
            x = scheduler.step(out, t, x, variance_noise=torch.zeros_like(x)).prev_sample
            if stage[n + 1]:
                write(x)
        assert stage.any()
        return x

    assert torch.equal(last(lambda x: x.fill_(2.0)), last(lambda x: None))


def test_outputs_of_a_captured_network_are_copied():
    """On an accelerator its next output may be written into the same tensor."""
    for device, copied in (("meta", True), ("cpu", False)):
        scheduler = TableauScheduler(**SD, solver="deis-3")
        scheduler.set_timesteps(6, device=device)
        x = torch.empty(1, 4, 4, 4, device=device)
        out = torch.empty_like(x)
        scheduler.step(out, scheduler.timesteps[0], x)
        assert (scheduler.model_outputs[0] is not out) == copied


def test_previews_are_not_part_of_the_history():
    def last(change):
        scheduler = TableauScheduler(**SD, clip_sample=True)
        scheduler.set_timesteps(4)
        x = start(scheduler)
        for t in scheduler.timesteps:
            stepped = scheduler.step(network(x, t), t, x)
            change(stepped.pred_original_sample)
            x = stepped.prev_sample
        return x

    assert torch.equal(last(lambda x0: x0.mul_(0.5)), last(lambda x0: x0))


def test_shapes_are_those_of_the_step_before():
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(4)
    x, t = start(scheduler), scheduler.timesteps[0]
    with pytest.raises(ValueError, match="as many channels"):
        scheduler.step(x[:, :1], t, x)
    with pytest.raises(ValueError, match="variance_noise is"):
        TableauScheduler(**SD, solver="ddpm").step(x, 999, x, variance_noise=torch.ones(1))
    x = scheduler.step(network(x, t), t, x).prev_sample
    with pytest.raises(ValueError, match="in the step before it was"):
        scheduler.step(x[:1], t, x[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_networks_lose_no_more_than_in_diffusers(dtype):
    """20 steps, network and samples in half: our error is at most that of the best class."""

    def error(make):
        def sampled(dtype):
            scheduler = make()
            scheduler.set_timesteps(20)
            x = start(scheduler).to(dtype)
            for t in scheduler.timesteps:
                x = scheduler.step(0.9 * x, t, x, return_dict=False)[0]
            return x.float()

        whole = sampled(torch.float32)
        return float((sampled(dtype) - whole).norm() / whole.norm())

    theirs = min(
        error(lambda kind=kind: getattr(diffusers, kind)(**SD))
        for kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    )
    for name in ("dpmpp-2m", "unipc-2"):
        assert error(lambda name=name: TableauScheduler(**SD, solver=name)) <= theirs
