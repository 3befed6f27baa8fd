"""Costs of Euler's steps against taking them, and what their nodes do for samples."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.schedules import EDM, FlowMatching, VPLinear
from fewstep.search.grids import cheapest, trajectory_costs

DIM = 24
# As images are: most directions vary little.
MEANS = 0.5 * np.random.default_rng(3).normal(size=(20, DIM)) * np.linspace(1, 0.1, DIM)
DENOISER = samplers.exact.mixture(MEANS, cov=np.diag(0.5 * np.linspace(1, 0.05, DIM) ** 4))
LAWS = {"vp": VPLinear(), "edm": EDM(), "flow": FlowMatching()}


def started(grid, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator).double() * float(grid.sigma[0])


@pytest.mark.parametrize("end", ["zero", "min"])
@pytest.mark.parametrize("name", LAWS)
def test_costs_are_those_of_steps_that_are_taken(name, end):
    fine = fewstep.grid(LAWS[name], 9, "karras", end=end)
    teacher, x = samplers.build("ipndm-4", fine), started(fine, 5)
    states = [x]
    samplers.sample(DENOISER, teacher, x, callback=lambda state, x0: states.append(state.x))
    y = [s / a for s, a in zip(states, fine.alpha, strict=True)]
    deviation, distance = (
        trajectory_costs(DENOISER, teacher, x, measure) for measure in ("deviation", "distance")
    )
    # The direction of the chord: from pure noise, which is infinitely far, that of the noise.
    pure = fine.alpha[0] == 0
    chord = x if pure else y[0] - y[-1]
    chord = chord / chord.norm(dim=1, keepdim=True)

    def from_chord(point):
        gap = point - y[-1]
        return (gap - (gap * chord).sum(1, keepdim=True) * chord).norm(dim=1).mean()

    for i in range(9):
        for j in range(i + 1, 10):
            table = samplers.build("ddim", fine.select([i, j], [False, False]))
            made = samplers.sample(DENOISER, table, states[i]) / fine.alpha[j]
            assert distance[i, j] == pytest.approx(
                float((made - y[j]).norm(dim=1).mean()), abs=1e-9
            )
            more = from_chord(made) - from_chord(y[j])
            assert deviation[i, j] == pytest.approx(float(more), abs=1e-8)
    assert (np.tril(distance) == 0).all()


@pytest.mark.parametrize("measure", ["deviation", "distance"])
@pytest.mark.parametrize("name", ["vp", "edm"])
def test_ddim_comes_nearer_to_its_end_on_held_out_noises(name, measure):
    law = LAWS[name]
    fine = fewstep.grid(law, 60, "karras")
    cost = trajectory_costs(DENOISER, samplers.build("ipndm-4", fine), started(fine, 64), measure)
    found = cheapest(fine, cost, [5, 8], growth=1.15)
    even = cheapest(fine, cost, [5, 8])
    x = started(fine, 300, seed=1)
    truth = samplers.sample(DENOISER, samplers.build("unipc-3", fewstep.grid(law, 200)), x)
    for nfe in (5, 8):

        def error(spacing, nfe=nfe):
            table = samplers.build("ddim", fewstep.grid(law, nfe, spacing))
            return float((samplers.sample(DENOISER, table, x) - truth).square().mean().sqrt())

        usual = min(error(spacing) for spacing in ("uniform", "karras"))
        assert error(found) < 0.75 * usual
        # The weights that are published favour late steps, and the distance at the end does not.
        assert error(even) < error(found)


def test_teachers_are_deterministic_and_take_one_evaluation_a_step():
    fine = fewstep.grid(VPLinear(), 6, "karras")
    for name, message in (("heun", "stages"), ("ddpm", "draws noise")):
        with pytest.raises(ValueError, match=message):
            trajectory_costs(DENOISER, samplers.build(name, fine), started(fine, 2))
