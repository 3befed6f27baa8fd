"""Restarts keep the law of every node, and make kernels of deterministic solvers."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import build, exact, restarted, sample
from fewstep.schedules import EDM, FlowMatching, VPLinear
from fewstep.steering import Chain

LAWS = {"vp": VPLinear(), "edm": EDM(), "flow": FlowMatching()}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_law_of_the_data_is_kept(law):
    """The variance at the end, by what the table makes of every noise."""
    variance = 0.4
    data = exact.gaussian([0.0], std=variance**0.5)
    low, high = (float(law.lam(t)) for t in (min(law.t_max, 0.999 * law.time(-6.0)), law.t_min))
    grid = fewstep.Grid.from_lams(law, np.linspace(low, high, 121))
    table = restarted("unipc-3", grid, [30, 60, 90], back=0.7)
    x = torch.zeros(1, 1, dtype=torch.float64)
    # What the first noise becomes, and each of the others.
    ends = [float(sample(data, table, x + grid.sigma[0], noise=lambda k, x: x * 0))]
    for drawn in np.flatnonzero(np.diag(table.noise)):

        def noise(k, x, drawn=drawn):
            return torch.full_like(x, float(k == drawn))

        ends.append(float(sample(data, table, x, noise=noise)))
    node = table.grid.nodes[-1]
    expected = node.alpha**2 * variance + node.sigma**2
    assert np.square(ends).sum() == pytest.approx(expected, rel=5e-3)
    assert len(ends) == 4


def test_what_a_table_of_restarts_is():
    grid = fewstep.grid(VPLinear(), 9, "uniform")
    table = restarted("dpmpp-2m", grid, [3, 6], back=0.5)
    levels = table.meta["levels"]
    assert (table.nfe, table.grid.nfe, levels) == (9, 11, [3, 7])
    np.testing.assert_allclose(table.grid.lam[[0, 3, 7, 11]], grid.lam[[0, 3, 6, 9]])
    assert not table.grid.stage[[0, 3, 7, 11]].any()
    assert table.grid.stage[[4, 8]].all()
    np.testing.assert_allclose(table.grid.lam[[4, 8]], grid.lam[[3, 6]] - 0.5)
    # A level begins anew: nothing is taken from before.
    assert not table.weights[3:, :3].any()
    assert not table.weights[7:, :7].any()
    for level in (3, 7):
        alpha, sigma = table.grid.alpha, table.grid.sigma
        kept = table.carry[level]
        assert kept == pytest.approx(alpha[level + 1] / alpha[level])
        whole = np.hypot(kept * sigma[level], table.noise[level, level])
        assert whole == pytest.approx(sigma[level + 1])


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "dpmpp-2s"])
def test_they_are_chains_for_drivers(solver):
    """Children of one state are different, and more of them by a longer way back."""
    data = exact.mixture([[2.0, 0], [-2, 0]], std=0.4)
    spread = []
    for back in (0.3, 1.5):
        grid = fewstep.grid(VPLinear(), 12, "uniform", end="min")
        table = restarted(solver, grid, [4, 8], back=back)
        chain = Chain(table, lambda size: data, (2,), tuple(table.meta["levels"]))
        state = chain.move(chain.begin([1]), 0, [1])
        # What is predicted there is of another state than the one that is gone on from.
        _, ahead = chain.predict(state)
        assert torch.equal(chain.move(ahead, 1, [3]).x, chain.move(state, 1, [3]).x)
        ends = chain.move(state.repeat(200), 1, range(200)).x
        spread.append(float(ends.std(0).max()))
    assert 0.01 < spread[0] < spread[1]


def test_options_go_to_the_solver_and_wrong_ones_are_said():
    grid = fewstep.grid(VPLinear(), 6, "uniform")
    whole, bare = (restarted("unipc-3", grid, [3], corrector=c).weights for c in (True, False))
    assert not np.array_equal(whole, bare)
    first = build("unipc-3", fewstep.grid(VPLinear(), 6, "uniform").select(range(4), [False] * 4))
    np.testing.assert_allclose(whole[:3, :3], first.weights, atol=1e-12)
    with pytest.raises(ValueError, match="ddpm draws noise itself"):
        restarted("ddpm", grid)
    for levels in ([0, 2], [1, 6], [1, 3, 2]):
        with pytest.raises(ValueError, match="levels rise from 1 to 5"):
            restarted("ddim", grid, levels)
    with pytest.raises(ValueError, match="back is above 0"):
        restarted("ddim", grid, back=0.0)
    assert samplers.restarted is restarted
