"""What is remembered between two steps."""

from __future__ import annotations

import diffusers
import pytest
import torch
from fewstep import TableauScheduler

from .peers import SD, network, start


def test_a_changed_sample_counts_where_it_was_changed():
    """In half precision the state goes on unrounded, but for what a pipeline put into it."""

    def last(change):
        scheduler = TableauScheduler(**SD, solver="ddim")
        scheduler.set_timesteps(2)
        x = start(scheduler).bfloat16()
        once = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
        given = change(once.clone())
        out = torch.zeros_like(given)
        return scheduler.step(out, scheduler.timesteps[1], given, return_dict=False)[0], once

    def masked(x):
        x[:1] = 2.0
        return x

    whole, once = last(lambda x: x)
    inpainted, _ = last(masked)
    assert torch.equal(inpainted[1:], whole[1:])
    # alpha x0 of a network that sees no noise is x itself.
    scale = (inpainted[:1] / 2).unique()
    assert len(scale) == 1
    assert torch.allclose(whole[1:], once[1:] * scale, rtol=2e-2)
    assert not torch.equal(whole[1:], once[1:] * scale)


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
