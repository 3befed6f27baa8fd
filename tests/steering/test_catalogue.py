"""Drivers by name spend what they are given, on a chain whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from fewstep.samplers import exact, restarted
from fewstep.schedules import grid
from fewstep.steering import DRIVERS, Chain, Tree, TreeRules, fittest, grow, grow_for, smc
from fewstep.steering.catalogue import dts_star_rules
from fewstep.steering.weights import systematic

from .chains import LAW, TILT, exact_chain, reward


def rollout(name, chain):
    """What a tree may spend too much; the others do not."""
    rules = DRIVERS[name].rules
    return 1 if rules is None else rules(1.0).candidates * chain.cost(looked_at=True)


@pytest.mark.parametrize("name", list(DRIVERS))
@pytest.mark.parametrize("count", [1, 3])
def test_a_budget_is_spent_and_all_are_better_than_chance(name, count):
    chain = exact_chain(5)
    found = DRIVERS[name].run(chain, reward, 200, count=count, seed=4)
    assert found.x.shape == (count, 1)
    assert found.weights.tolist() == pytest.approx([1 / count] * count)
    np.testing.assert_allclose(found.rewards, TILT * found.x[:, 0].numpy())
    assert 190 <= found.evaluations < 200 + rollout(name, chain)
    runs = [DRIVERS[name].run(chain, reward, 200, count=count, seed=s) for s in range(5, 13)]
    assert np.mean([run.rewards.max() for run in runs]) > 1
    again = DRIVERS[name].run(exact_chain(5), reward, 200, count=count, seed=4)
    assert (again.x == found.x).all()
    with pytest.raises(ValueError, match="not enough for"):
        DRIVERS[name].run(chain, reward, 4)


def test_the_search_finds_more_than_chance():
    """At equal evaluations DTS* is above best-of-N, in the mean over seeds."""
    gain = [
        float(
            DRIVERS["dts-star"].run(exact_chain(5), reward, 300, scale=10.0, seed=s).rewards[0]
            - DRIVERS["best-of"].run(exact_chain(5), reward, 300, seed=s).rewards[0]
        )
        for s in range(12)
    ]
    assert np.mean(gain) > 2 * np.std(gain) / 12**0.5


def test_the_best_leaves_come_first():
    tree = Tree(TreeRules(), 2)
    grow(tree, exact_chain(5), reward, 30)
    values = sorted((tree.nodes[leaf].value for leaf in tree.leaves), reverse=True)
    assert fittest(tree, 4).rewards.tolist() == values[:4]
    assert fittest(tree, 99).rewards.tolist() == values
    with pytest.raises(ValueError, match="has not grown"):
        fittest(Tree(TreeRules()), 1)


def test_a_tree_is_grown_on_to_a_budget():
    """A rollout of the search costs four times the five steps, as it looks at four candidates."""
    tree, chain = Tree(dts_star_rules(1.0), 1), exact_chain(5)
    grow_for(tree, chain, reward, 50)
    first = tree.iterations
    assert (first, tree.evaluations) == (3, 60)
    found = DRIVERS["dts-star"].run(chain, reward, 200, tree=tree, seed=1)
    assert tree.iterations > first
    assert 200 <= found.evaluations < 220
    with pytest.raises(ValueError, match="19 evaluations are not enough for 4 x 5"):
        DRIVERS["dts-star"].run(chain, reward, 19)


def test_particles_are_drawn_by_their_weights():
    found = smc(exact_chain(5), reward, 64, threshold=0.0, seed=3)
    drawn = found.drawn(640, seed=1)
    for x, weight in zip(found.x, found.weights, strict=True):
        times = int((drawn.x == x).sum())
        assert abs(times - 640 * weight) < 1
    assert drawn.weights.tolist() == [1 / 640] * 640
    assert systematic(np.array([0.5, 0.25, 0.25]), 0.1, 8) == [0, 0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", list(DRIVERS))
def test_restarts_cost_what_is_looked_at(name):
    """At a level where no step begins with an evaluation, looking is one of its own."""
    nodes = grid(LAW, 6, "uniform")
    table = restarted("ddim", nodes, [2, 4])
    normal = exact.gaussian([0.0], std=1.0)
    chain = Chain(table, lambda size: normal, (1,), table.meta["levels"])
    assert not any(table.steps[level].call for level in chain.levels)
    found = DRIVERS[name].run(chain, reward, 70, seed=1)
    # The steps before the first level are not run again for every child.
    assert 50 <= found.evaluations < 70 + rollout(name, chain)


def test_rollouts_at_once_do_not_overspend():
    tree, chain = Tree(TreeRules(), 0), exact_chain(5)
    grow_for(tree, chain, reward, 52, batch=64)
    assert 52 <= tree.evaluations < 57
    tree = Tree(dts_star_rules(1.0), 0)
    grow_for(tree, chain, reward, 105, batch=64)
    assert 105 <= tree.evaluations < 125
