"""How rare samples are, and the way there, where it is known."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import advance, build, exact, guidance, initial, sample
from fewstep.samplers.guidance.minority import node_at
from fewstep.samplers.streams import salted, standard_normal
from fewstep.schedules import EDM, VPLinear

LAW = VPLinear()
RNG = np.random.default_rng(3)
ROOT = RNG.normal(size=(5, 5))
MEAN, COV = RNG.normal(size=5), ROOT @ ROOT.T / 5
NORMAL = exact.gaussian(MEAN, COV)


def gain_of(node):
    """G of E[x0 | x] = mean + G (x - alpha mean)."""
    return node.alpha * COV @ np.linalg.inv(node.alpha**2 * COV + node.sigma**2 * np.eye(5))


@pytest.mark.parametrize("law", [LAW, EDM()], ids=["vp", "edm"])
def test_of_normal_data_the_score_is_a_closed_form(law):
    """|(I - alpha G) (x0 - mean)|^2 + sigma^2 |G|^2."""
    node = fewstep.grid(law, 6, "uniform").nodes[3]
    gain = gain_of(node)
    x0 = RNG.normal(size=(3, 5)) * 2
    expected = np.square((x0 - MEAN) @ (np.eye(5) - node.alpha * gain).T).sum(1)
    expected += node.sigma**2 * np.square(gain).sum()
    found = guidance.minority_score(
        NORMAL, torch.from_numpy(x0), node, [1, 2, 3], draws=1000
    ).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_squared_error_is_that_of_eps():
    """(sigma / alpha)^2 times the mean square error of eps, draw by draw."""
    node, seeds = fewstep.grid(LAW, 6, "uniform").nodes[3], range(4)
    x0 = torch.from_numpy(RNG.normal(size=(4, 5)))
    found = guidance.minority_score(NORMAL, x0, node, seeds, draws=3)
    total = torch.zeros(4).double()
    for draw in range(3):
        z = standard_normal(salted(seeds, "minority"), draw, x0)
        x = node.alpha * x0 + node.sigma * z
        eps = (x - node.alpha * NORMAL(x, node)) / node.sigma
        total += (eps - z).square().sum(1) / 3
    torch.testing.assert_close(found, total * (node.sigma / node.alpha) ** 2)


def test_it_tells_the_rare_component():
    """Weights .95 and .05: above .9 of pairs in order where it is ambiguous, half without noise."""
    data = exact.mixture([[2.0, 0], [-2, 0]], [0.95, 0.05], std=0.5)
    rng = np.random.default_rng(0)
    rare = rng.random(600) < 0.3
    x0 = np.where(rare[:, None], [-2.0, 0], [2.0, 0]) + 0.5 * rng.normal(size=(600, 2))

    def order(node):
        found = guidance.minority_score(data, torch.from_numpy(x0), node, range(600)).numpy()
        return (found[rare][:, None] > found[~rare]).mean()

    assert order(node_at(LAW, 0.6)) > 0.9
    assert order(node_at(LAW, 0.01)) == pytest.approx(0.5, abs=0.08)


def test_the_second_evaluation_is_held_still():
    """Squared error of normal data: 2 G^T (I - alpha' G') (x0(x) - mean) in the mean over noise."""
    here, there = (fewstep.grid(LAW, 8, "uniform").nodes[k] for k in (5, 2))
    count = 3000
    x = torch.from_numpy(np.tile(RNG.normal(size=5) * 2, (count, 1)))
    x0 = NORMAL(x, here)
    guided = guidance.self_guided(NORMAL, there, 1.0, range(count))(x, here)
    push = ((guided - x0) * here.alpha / here.sigma**2).numpy()
    # Directions, whose largest entry is 1: with the lengths that they had.
    gain, again = gain_of(here), gain_of(there)
    z = standard_normal(salted(range(count), "self-guided"), here.index, x).numpy()
    ends = MEAN + (there.alpha * (x0.numpy() - MEAN) + there.sigma * z) @ again.T
    slopes = 2 * (x0.numpy() - ends) @ gain
    np.testing.assert_allclose(push, slopes / np.abs(slopes).max(1, keepdims=True), atol=1e-9)
    mean = 2 * gain.T @ (np.eye(5) - there.alpha * again) @ (x0[0].numpy() - MEAN)
    np.testing.assert_allclose(slopes.mean(0), mean, atol=4 * slopes.std(0).max() / count**0.5)
    assert np.abs(push).max(1) == pytest.approx(1)


def test_runs_end_in_rarer_places_and_streams_stay_with_their_samples():
    data = exact.mixture([[2.0, 0], [-2, 0]], [0.95, 0.05], std=0.5)
    grid = fewstep.grid(LAW, 20, "uniform")
    table, seeds = build("ddim", grid), range(60)
    x = fewstep.noise(grid, (2,), seeds, dtype=torch.float64)
    guided = guidance.self_guided(data, node_at(LAW, 0.6), 0.6, seeds, every=2)
    found, bare = sample(guided, table, x), sample(data, table, x)
    assert (found[:, 0] < 0).sum() > (bare[:, 0] < 0).sum()
    scores = [
        guidance.minority_score(data, each, node_at(LAW, 0.6), seeds) for each in (found, bare)
    ]
    assert scores[0].mean() > scores[1].mean()
    half = advance(initial(table, x), guided, table, 7).take(range(59, -1, -1))
    torch.testing.assert_close(advance(half, guided, table, 13).x.flip(0), found)
    off = guidance.self_guided(data, node_at(LAW, 0.6), 0.0, [])
    assert torch.equal(sample(off, table, x), bare)
    with pytest.raises(ValueError, match="1 seeds for 60 samples"):
        sample(guidance.self_guided(data, grid.nodes[3], 1.0, [1]), table, x)
