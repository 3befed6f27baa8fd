"""The cheapest way, against all ways."""

from __future__ import annotations

import itertools

import fewstep
import numpy as np
import pytest
from fewstep.schedules import VPLinear
from fewstep.search.grids import cheapest, length, shortest


@pytest.mark.parametrize("growth", [1.0, 1.15, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_least_of_all_ways(seed, growth):
    # Costs of GITS may be negative.
    cost = np.random.default_rng(seed).normal(size=(9, 9))
    for steps in range(1, 9):
        ways = [(0, *inside, 8) for inside in itertools.combinations(range(1, 8), steps - 1)]
        best = min(ways, key=lambda way: length(cost, way, growth))
        assert shortest(cost, steps, growth) == best


def test_what_a_way_costs():
    cost = np.array([[0, 1, 5], [9, 0, 3], [9, 9, 0]])
    assert length(cost, (0, 1, 2)) == 4
    assert length(cost, (0, 1, 2), 2.0) == 1 + 2 * 3
    assert shortest(cost, 1) == (0, 2)


def test_coordinate_search_ends_no_lower():
    """What is published for Align Your Steps moves one node at a time, to its best place."""
    rng = np.random.default_rng(1)
    cost = rng.random((30, 30)) * np.abs(np.subtract.outer(np.arange(30), np.arange(30))) ** 1.5
    way = [0, 4, 9, 15, 20, 25, 29]
    for _ in range(20):
        for k in range(1, 6):
            between = range(way[k - 1] + 1, way[k + 1])
            way[k] = min(between, key=lambda i: cost[way[k - 1], i] + cost[i, way[k + 1]])
    assert length(cost, shortest(cost, 6)) < length(cost, way)


def test_what_cannot_be_is_refused():
    cost = np.ones((4, 4))
    for steps in (0, 4):
        with pytest.raises(ValueError, match=f"{steps} steps through"):
            shortest(cost, steps)
    with pytest.raises(ValueError, match="steps through"):
        shortest(np.ones((4, 3)), 2)
    cost[1, 3] = np.nan
    with pytest.raises(ValueError, match="from candidate 1 to 3 is NaN"):
        shortest(cost, 2)


def test_nodes_are_those_of_the_candidates():
    fine = fewstep.grid(VPLinear(), 12, "karras")
    cost = np.square(np.subtract.outer(np.arange(13), np.arange(13)))
    found = cheapest(fine, cost, [3, 4])
    assert found.steps == (3, 4)
    assert fewstep.grid(VPLinear(), 4, found).lam.tolist() == fine.lam[::3].tolist()
