"""Pipelines that begin late get the state that normal laws take their noise to."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import TableauScheduler, samplers
from fewstep.integrations import teleported
from fewstep.samplers import GaussianData, exact, skip_time
from fewstep.samplers.teleport import beginning, gaussian_flow
from fewstep.schedules import FlowMatching

from .cases import CASES
from .components import EDGE

RNG = np.random.default_rng(6)


def laws(channels, count=1):
    dim = channels * EDGE**2
    vectors = [np.linalg.qr(RNG.normal(size=(dim, 5)))[0] for _ in range(count)]
    law = exact.low_rank_mixture(
        RNG.normal(size=(count, dim)),
        np.ones(count),
        np.stack(vectors),
        RNG.uniform(size=(count, 5)),
        np.full(count, 0.1),
    )
    return GaussianData(law, (channels, EDGE, EDGE), "all" if count == 1 else "class")


def called(name, like, skip, data, labels=None):
    """The noise, the first state that the scheduler of the pipeline saw, and the table."""
    case = CASES[name]
    config = case.make(case.original()).scheduler.config
    law = FlowMatching(3.0) if case.flow else samplers.from_diffusers_config(config)[0]
    grid = fewstep.grid(law, 3, "uniform", t_max=skip_time(law, skip(law)))
    table = samplers.build("ddim", grid)
    keys = {} if like is None else {"like": like}
    scheduler = TableauScheduler.from_config(config, tableau=table.to_dict(), **keys)
    pipe, seen = case.make(scheduler), []
    step = scheduler.step
    scheduler.step = lambda out, t, x, *a, **k: (seen.append(x.clone()), step(out, t, x, *a, **k))[
        1
    ]
    z = torch.randn(2, *data.shape, generator=torch.Generator().manual_seed(1))
    latents = teleported(scheduler, z, data, 3, labels)
    given = {k: v for k, v in case.inputs(3).items() if k not in ("height", "width")}
    pipe(**{**given, "latents": latents[:1], "output_type": "latent"})
    return z, latents, seen[0][:1], table


@pytest.mark.parametrize(
    ("name", "like"), [("sd", None), ("sd", "EulerDiscreteScheduler"), ("sd3", None)]
)
def test_the_first_state_of_a_pipeline_is_the_teleported_one(name, like):
    """alpha x0 + sigma eps of the scheduler's own form, whatever pipelines multiply with."""
    data = laws(4 if name == "sd" else CASES[name].parts()["transformer"].config.in_channels)
    z, _, first, table = called(name, like, lambda law: 5.0, data)
    source, node = beginning(table.grid.schedule).nodes[0], table.grid.nodes[0]
    expected = gaussian_flow(data.law, source.sigma * z[:1], source, node)
    expected = expected / node.alpha if like == "EulerDiscreteScheduler" else expected
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_skipped_noise_is_noise():
    z, latents, _, _ = called("sd", None, lambda law: float(law.nsr(law.t_max)), laws(4))
    # Pipelines begin with deviation 1, which is a little more than sigma there.
    torch.testing.assert_close(latents, z, rtol=5e-3, atol=1e-3)


def test_labels_choose_the_law():
    data, labels = laws(4, 2), torch.tensor([1, 0])
    z, latents, _, table = called("sd", None, lambda law: 5.0, data, labels)
    source, node = beginning(table.grid.schedule).nodes[0], table.grid.nodes[0]
    expected = gaussian_flow(data.law, source.sigma * z, source, node, labels)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_a_scheduler_without_a_table_begins_where_it_always_does():
    with pytest.raises(ValueError, match="a table that begins late"):
        teleported(TableauScheduler(solver="ddim"), torch.zeros(1, 4, 8, 8), laws(4), 3)
