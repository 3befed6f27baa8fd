"""The better run that short ones are judged by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.models import load_model
from fewstep.samplers.fit import refined
from fewstep.schedules import grid
from fewstep.search.dc import RatioConfig
from fewstep.search.lessons import from_the_beginning, lessons_of

from ..eval.models import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ddpm"
    tiny.ddpm().save_pretrained(folder)
    return load_model(str(folder), "cpu")


def test_teachers_are_at_the_nodes(model):
    """Their last state is that of the many steps; each sample is that of its seed."""
    nodes = grid(model.schedule, 3)
    asked = RatioConfig(samples=3, held_out=2, substeps=2, first_seed=7)
    (batch,), (other,) = lessons_of(asked, model, nodes)
    fine = samplers.build("unipc-3", refined(nodes, 2))
    truth = samplers.sample(batch.denoiser, fine, batch.start(nodes))
    assert len(batch.states) == 3
    torch.testing.assert_close(batch.states[-1], truth)
    noises = [samplers.noise(nodes, model.shape, seeds) for seeds in (range(7, 10), range(10, 12))]
    for each, x in zip((batch, other), noises, strict=True):
        torch.testing.assert_close(each.z * float(nodes.sigma[0]), x)
    parts, _ = lessons_of(asked.model_copy(update={"batch_size": 2}), model, nodes)
    assert [len(each.z) for each in parts] == [2, 1]
    torch.testing.assert_close(
        torch.cat([each.states[-1] for each in parts]), truth, rtol=1e-3, atol=1e-3
    )


def test_of_a_grid_that_begins_late_they_begin_where_the_schedule_does(model):
    late = grid(model.schedule, 3, "leading", end="min")
    assert late.time[0] < model.schedule.t_max
    fine = from_the_beginning(late, 4)
    assert fine.time[0] == model.schedule.t_max
    np.testing.assert_allclose(fine.time[4::4], late.time, rtol=1e-12)
    asked = RatioConfig(samples=2, held_out=1, teacher="ddim", substeps=4, first_seed=0)
    (batch,), _ = lessons_of(asked, model, late)
    table = samplers.build("ddim", fine)
    x = samplers.noise(table.grid, model.shape, range(2))
    states = []
    samplers.sample(batch.denoiser, table, x, callback=lambda s, _: states.append(s.x))
    for state, expected in zip(batch.states, states[7::4], strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-3)
    whole = grid(model.schedule, 3)
    assert np.array_equal(from_the_beginning(whole, 4).time, refined(whole, 4).time)
