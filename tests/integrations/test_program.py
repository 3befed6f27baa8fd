"""A run without reads from the device, and compiled."""

from __future__ import annotations

from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from .peers import SD, network, start


class NoReads(TorchDispatchMode):
    """Fails on whatever copies to the host or waits for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "item", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("begin", [None, 0])
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-3", "heun", "deis-3", "ddim"])
def test_step_reads_nothing_back(name, begin):
    scheduler = TableauScheduler(**SD, solver=name)
    scheduler.set_timesteps(6, device="meta")
    if begin is not None:
        scheduler.set_begin_index(begin)
    x = torch.empty(2, 4, 4, 4, device="meta")
    with NoReads():
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]


COMPILED = ["dpmpp-2m", "unipc-3", "heun", "sde-dpmpp-2m", "dpmpp-2s", "ab-4"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in COMPILED), ("unipc-3", torch.bfloat16)],
)
def test_step_compiles_once_for_a_whole_run(name, dtype):
    """A few graphs (the first step, the steps, the last one), not one per step."""
    torch._dynamo.reset()
    schedulers = [TableauScheduler(**SD, solver=name) for _ in range(2)]
    counter = CompileCounter()
    steps = [torch.compile(schedulers[0].step, fullgraph=True, backend=counter), schedulers[1].step]
    for scheduler in schedulers:
        scheduler.set_timesteps(20)
    states = [start(schedulers[0]).to(dtype)] * 2
    for t in schedulers[0].timesteps:
        z = start(schedulers[0], int(t))
        states = [
            step(0.5 * x.sin(), t, x, variance_noise=z, return_dict=False)[0]
            for step, x in zip(steps, states, strict=True)
        ]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 5


def test_a_compiled_run_that_begins_late_has_to_say_so():
    torch._dynamo.reset()
    scheduler = TableauScheduler(**SD)
    scheduler.set_timesteps(5)
    step = torch.compile(scheduler.step, fullgraph=True, backend="eager")
    x, t = start(scheduler), scheduler.timesteps[2]
    with pytest.raises(RuntimeError, match="set_begin_index"):
        step(network(x, t), t, x)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    late = step(x, t, x).prev_sample
    scheduler.set_timesteps(5)
    torch.testing.assert_close(late, scheduler.step(x, t, x).prev_sample)


def test_compiled_runs_may_differ_in_length_and_begin():
    torch._dynamo.reset()
    scheduler, counter = TableauScheduler(**SD, solver="unipc-3"), CompileCounter()
    step = torch.compile(scheduler.step, fullgraph=True, backend=counter)
    for steps, begin in ((8, 0), (9, 0), (10, 3), (12, 5), (15, 0), (20, 1)):
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(begin)
        x = start(scheduler)
        for t in scheduler.timesteps[begin:]:
            x = step(0.5 * x.sin(), t, x, return_dict=False)[0]
        assert x.isfinite().all()
    assert counter.frame_count <= 5


@pytest.mark.parametrize("compiled", [False, True])
def test_a_table_with_a_bias_runs_in_a_pipeline(compiled):
    law = samplers.from_diffusers_config(SD)[0]
    plain = samplers.build("unipc-2", fewstep.grid(law, 6, "leading"))
    bias = np.array([0, 0.5, 0, 0, -0.25, 0.1])
    ends = []
    for table in (plain, replace(plain, bias=bias)):
        scheduler = TableauScheduler(**SD, tableau=table.to_dict())
        scheduler.set_timesteps(6)
        assert [line.biased for line in scheduler._plan.program(0)] == [bool(table.bias.any())] * 6
        torch._dynamo.reset()
        step = scheduler.step
        if compiled:
            step = torch.compile(step, fullgraph=True, backend="eager")
        x = start(scheduler)
        for t in scheduler.timesteps:
            x = step(torch.zeros_like(x), t, x, return_dict=False)[0]
        ends.append(x)
    denoiser = samplers.denoiser(lambda x, label: torch.zeros_like(x), law)
    x = start(scheduler)
    for end, table in zip(ends, (plain, replace(plain, bias=bias)), strict=True):
        torch.testing.assert_close(end, samplers.sample(denoiser, table, x), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(*ends)
