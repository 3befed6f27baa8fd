"""Ratios found on a mixture, beside a search by brute force."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers.fit import Trajectories, refined, teach
from fewstep.schedules import VPLinear
from fewstep.search.dc import Course, greedy, joint
from fewstep.search.lessons import end_error

DENOISER = samplers.exact.mixture([[1.0, -1], [0.5, 2], [-1, 0.3]], std=[0.3, 0.4, 0.35])
GRID = fewstep.grid(VPLinear(), 6, "uniform", end="min")


def lessons(seeds):
    z = fewstep.noise(GRID, (2,), seeds, dtype=torch.float64) / float(GRID.sigma[0])
    course = teach(samplers.build("unipc-3", refined(GRID, 20)), DENOISER, z)
    return [Trajectories(DENOISER, z, course.states[19::20])]


def course(name):
    return Course(samplers.build(name, GRID), samplers.solver(name).predictor(GRID))


@pytest.mark.parametrize("name", ["ddim", "unipc-3"])
def test_each_ratio_is_the_best_of_its_step(name):
    """By runs in full, with a corrector applied by hand, on a fine mesh of ratios."""
    batches, how = lessons(range(12)), course(name)
    ratios = greedy(how, batches)
    assert ratios[:2] == (1, 1)
    for step in range(2, GRID.nfe):

        def miss(ratio, step=step):
            tried = [*ratios[:step], ratio, *[1.0] * (GRID.nfe - step - 1)]
            table = how.with_ratios(tried)
            states, asked = [batches[0].start(GRID)], []

            def spied(x, node):
                asked.append(DENOISER(x, node))
                return asked[-1]

            fewstep.sample(spied, table, states[0], callback=lambda s, _: states.append(s.x))
            x = states[step + 1]
            if name == "unipc-3" and step < GRID.nfe - 1:
                # What the next row adds beyond its own predictor is the correction, carried on.
                own = samplers.compensate(how.predictor, tried).weights[step + 1]
                gap = (table.weights[step + 1] - own) / table.carry[step + 1]
                x = x + sum(w * m for w, m in zip(gap, asked, strict=True))
            return float((x - batches[0].states[step]).square().mean())

        mesh = np.linspace(0, 2, 41)
        losses = [miss(ratio) for ratio in mesh]
        assert miss(ratios[step]) <= min(losses) * (1 + 1e-3)
        assert min(losses) < 0.999 * miss(1.0) or ratios[step] == 1


def test_correctors_see_their_target_as_it_is():
    """With ratio 1 at the step after, what is corrected there does not know of later ratios."""
    how = course("unipc-3")
    table = how.with_ratios([1, 1, 0.7, 1, 1, 1])
    other = how.with_ratios([1, 1, 0.7, 0.4, 1, 1])
    assert np.array_equal(table.weights[:3], other.weights[:3])
    plain = Course(how.table)
    assert not np.array_equal(plain.with_ratios([1, 1, 0.7, 1, 1, 1]).weights[2], table.weights[2])


def test_together_they_are_better_and_hold_for_other_noises():
    batches, others, how = lessons(range(24)), lessons(range(100, 164)), course("ddim")
    first = greedy(how, batches)
    found = joint(how, batches, first)
    assert found[:2] == (1, 1)
    assert end_error(how.with_ratios(found), batches) < end_error(how.with_ratios(first), batches)
    assert end_error(how.with_ratios(found), others) < 0.9 * end_error(how.table, others)
    # Nothing in the neighbourhood is better.
    for step in range(2, GRID.nfe):
        for change in (-0.02, 0.02):
            near = [r + change * (k == step) for k, r in enumerate(found)]
            if 0 < near[step] < 2:
                assert end_error(how.with_ratios(near), batches) > end_error(
                    how.with_ratios(found), batches
                ) * (1 - 1e-4)


def test_batches_make_no_difference():
    (whole,), how = lessons(range(6)), course("unipc-3")
    parts = [
        Trajectories(DENOISER, whole.z[rows], [state[rows] for state in whole.states])
        for rows in (slice(0, 2), slice(2, 6))
    ]
    first, second = greedy(how, [whole]), greedy(how, parts)
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(joint(how, [whole], first), joint(how, parts, second), atol=1e-3)
    assert end_error(how.table, [whole]) == pytest.approx(end_error(how.table, parts), rel=1e-12)
