from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.distill.tables.objective import distance
from fewstep.samplers.fit import teach
from fewstep.schedules import grid

from .problem import LAW, STEPS, mixture, plain, teacher


def test_a_student_meets_its_teacher_at_its_own_nodes():
    found = teacher(0, 5)
    (course,) = found.batches
    nodes, (met,) = found.trajectories([12, 30, 45])
    np.testing.assert_array_equal(nodes.time, found.grid.time[[12, 30, 45, STEPS]])
    for target, place in zip(met.states, [30, 45, STEPS], strict=True):
        assert torch.equal(target, course.states[place - 1])
    # Noise alone at the first node, though the teacher was on its way by then.
    assert met.z is course.z


def test_states_are_those_of_the_run():
    nodes = grid(LAW, 7, "quadratic")
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()
    table = samplers.build("unipc-2", nodes)
    course = teach(table, mixture(), z)
    assert len(course.states) == 7
    end = samplers.sample(mixture(), table, z * nodes.sigma[0])
    assert torch.equal(course.states[-1], end)


def test_a_part_has_some_of_the_batches():
    whole = teacher(0, 5, 6)
    assert [len(each.z) for each in whole.part(1).batches] == [6]
    assert whole.part(0, 1).grid is whole.grid


def test_a_teacher_that_draws_noise_is_refused():
    table = samplers.build("ddpm", grid(LAW, 4, "uniform"))
    with pytest.raises(ValueError, match="a teacher must be deterministic, and ddpm draws noise"):
        teach(table, mixture(), torch.zeros(2, 16))


def test_the_distance_is_over_all_samples_of_all_batches():
    found = teacher(0, 30, 10)
    nodes, met = found.trajectories(plain(4))
    table = samplers.build("ddim", nodes)
    ends = torch.cat([samplers.sample(mixture(), table, e.z * nodes.sigma[0]) for e in met])
    truth = torch.cat([each.states[-1] for each in met])
    assert distance(met, table) == pytest.approx(float((ends - truth).square().mean().sqrt()))
