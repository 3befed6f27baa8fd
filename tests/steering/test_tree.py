"""Trees over a chain whose values are known, and what they are known to get wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fewstep.steering import Tree, TreeRules, draw, grow
from fewstep.steering.weights import log_mean_exp

from .chains import LOG_Z, TILT, exact_chain, reward


def grown(iterations, chain=None, seed=0, batch=1, **rules):
    chain = exact_chain(5) if chain is None else chain
    tree = Tree(TreeRules(**rules), seed)
    grow(tree, chain, reward, iterations, batch=batch)
    return tree


def test_the_root_has_36_children_before_it_is_gone_down():
    """The published widening: 2 N^.8; 80 of them after 100 rollouts, all of full length."""
    tree = grown(36)
    assert len(tree.nodes[0].children) == 36
    assert tree.evaluations == 36 * 5
    assert tree.reward_calls == 36
    grow(tree, exact_chain(5), reward, 1)
    assert len(tree.nodes[0].children) == 36
    for width, widening, count in ((2, 0.7, 13), (1, 0.5, 2)):
        tree = grown(count + 1, width=width, widening=widening)
        assert len(tree.nodes[0].children) == count
    assert len(grown(100).nodes[0].children) == 80


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_leaves_are_drawn_by_their_rewards_and_the_children_above_them(scale):
    """P(leaf) = e^(scale r) / (e^(scale v) prod |children|), for any tree; they add up to 1."""
    tree = grown(80, scale=scale)
    logs = tree.log_probabilities()
    for leaf, found in zip(tree.leaves, logs, strict=True):
        count, at = 0.0, tree.nodes[leaf].parent
        while at >= 0:
            count += math.log(len(tree.nodes[at].children))
            at = tree.nodes[at].parent
        expected = scale * (tree.nodes[leaf].value - tree.nodes[0].value) - count
        assert found == pytest.approx(expected, abs=1e-12)
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-12)
    # And so they are drawn.
    drawn = draw(tree, 1000, seed=1).rewards
    values = np.array([tree.nodes[leaf].value for leaf in tree.leaves])
    mean = np.exp(logs) @ values
    deviation = np.sqrt(np.exp(logs) @ (values - mean) ** 2)
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / 1000**0.5)


@pytest.mark.parametrize(("candidates", "greatest"), [(2, 0.56419), (4, 1.02938)])
def test_a_rollout_goes_on_from_the_best_of_candidates(candidates, greatest):
    """x' = rho x + s z at every level with the greatest z of several; the same as children of svdd.

    `greatest` is the mean of the maximum of so many standard normals.
    """
    chain, ends = exact_chain(5), []
    for seed in range(25):
        tree = grown(36, chain, seed, batch=36, select="uct", candidates=candidates)
        assert tree.evaluations == 36 * 5 * candidates
        ends += [tree.nodes[leaf].value / TILT for leaf in tree.leaves]
    rho = chain.table.grid.alpha[:-1] / chain.table.grid.alpha[1:]
    mean = 0.0
    for each in rho:
        mean = each * mean + np.sqrt(1 - each**2) * greatest
    assert np.mean(ends) == pytest.approx(mean, abs=4 * np.std(ends) / len(ends) ** 0.5)
    # What went on is in the tree, and what was predicted of it is not asked for again.
    rules = TreeRules(select="uct", candidates=candidates, width=1.0, widening=0.5)
    tree, lengths = Tree(rules), []
    for _ in range(40):
        before, nodes = tree.evaluations, len(tree.nodes)
        grow(tree, chain, reward, 1)
        new = len(tree.nodes) - nodes
        assert tree.evaluations - before == candidates * (5 if new >= 5 else new - 1)
        lengths.append(new)
    assert {1, 2, 3, 4, 5, 6} <= {*lengths}


def test_values_are_backed_up():
    """Every value is the mean of exponentials of those below it, also where the mean is one."""
    for scale in (0.0, 1.0, math.inf):
        tree = grown(60, scale=scale)
        for node in tree.nodes:
            if node.children:
                below = np.array([tree.nodes[c].value for c in node.children])
                assert node.value == pytest.approx(log_mean_exp(below, scale), abs=1e-12)
    best = max(tree.nodes[leaf].value for leaf in tree.leaves)
    assert tree.nodes[0].value == best
    assert draw(tree, 3).rewards.tolist() == [best] * 3


def test_visits_are_counted_and_all_are_seen():
    """By UCT every child is gone down, beyond its own rollout; without a bonus some never are."""
    tree = grown(120, select="uct", explore=30.0, width=1.0, widening=0.5)
    assert tree.nodes[0].visits == 121
    root = tree.nodes[0]
    assert min(tree.nodes[c].visits for c in root.children[:5]) > 2 + np.log(root.visits) / 2
    bare = grown(120, select="uct", explore=0.0, width=1.0, widening=0.5)
    assert min(bare.nodes[c].visits for c in bare.nodes[0].children[:5]) == 2
    # Without a bonus the end of the greatest value.
    greedy = grown(100, select="uct", explore=0.0, scale=math.inf)
    ends = [greedy.nodes[leaf].value for leaf in greedy.leaves]
    assert draw(greedy, 1).rewards[0] == max(ends)


def test_growing_twice_is_growing_longer():
    """A tree may be left and gone on with: as many rollouts, and values of the same kind."""
    tree = grown(30, seed=4)
    grow(tree, exact_chain(5), reward, 30)
    assert (tree.iterations, tree.nodes[0].visits) == (60, 61)
    assert tree.evaluations <= 60 * 5
    once = grown(60, seed=4)
    assert [n.value for n in once.nodes] == [n.value for n in tree.nodes]


def test_many_rollouts_at_once():
    """What is on its way counts, so that the root is not left with less children."""
    tree = grown(100, batch=10)
    assert len(tree.nodes[0].children) == 80
    assert len(tree.leaves) == 100
    for node in tree.nodes:
        assert not math.isnan(node.value)
        assert node.state is not None or node.parent < 0
    assert np.exp(tree.log_probabilities()).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_fixed_trees_are_without_bias():
    """Four children, two, two: E e^v = Z. A width that never lets a node be gone down, cut off."""
    ratios = []
    for seed in range(400):
        tree = Tree(TreeRules(width=1e9, widening=1.0), seed)
        chain = exact_chain(3)
        build_fixed(tree, chain, (4, 2, 2, 1))
        ratios.append(np.exp(tree.nodes[0].value - LOG_Z))
    assert np.mean(ratios) == pytest.approx(1, abs=3 * np.std(ratios) / 400**0.5)


def build_fixed(tree, chain, fan):
    """A tree of fixed fan-out, by hand: noise, and as many children of each on every level."""
    from fewstep.steering.tree import TreeNode

    level = [0]
    for depth, count in enumerate(fan):
        fresh = []
        for at in level:
            for _ in range(count):
                tree.nodes.append(TreeNode(depth, at, None))
                fresh.append(len(tree.nodes) - 1)
                tree.nodes[at].children.append(fresh[-1])
        if depth == 0:
            state = chain.begin(fresh_seeds(tree, fresh))
        else:
            parents = [level.index(tree.nodes[at].parent) for at in fresh]
            state = chain.move(state.take(parents), depth - 1, fresh_seeds(tree, fresh))
        level = fresh
    for at, value in zip(level, reward(state.x).tolist(), strict=True):
        tree.nodes[at].value = value
    for node in reversed(tree.nodes):
        if node.children:
            node.value = log_mean_exp(np.array([tree.nodes[c].value for c in node.children]))


def fresh_seeds(tree, fresh):
    return [tree.seed * 1000 + at for at in fresh]


@pytest.mark.parametrize("correction", ["none", "ipw"])
def test_candidates_are_drawn_by_their_rewards_and_weighed_back(correction):
    """The first rollouts, which nothing has guided, have the law's normaliser without bias.

    The same probabilities of leaves follow, with p / q in them, and values vary less.
    """
    chain, found = exact_chain(5), {}
    for candidates in (1, 4):
        rules = TreeRules(candidates=candidates, correction=correction)
        values = []
        for seed in range(60):
            tree = Tree(rules, seed)
            grow(tree, chain, reward, 36, batch=36)
            values.append(math.exp(tree.nodes[0].value - LOG_Z))
        found[candidates] = np.array(values)
        assert found[candidates].mean() == pytest.approx(
            1, abs=4 * found[candidates].std() / 60**0.5
        )
    assert found[4].std() < found[1].std() / 1.5
    grow(tree, chain, reward, 40)
    logs = tree.log_probabilities()
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-12)
    if correction == "none":
        for leaf, log in zip(tree.leaves, logs, strict=True):
            expected, at = tree.nodes[leaf].value - tree.nodes[0].value, leaf
            while at > 0:
                parent = tree.nodes[at].parent
                expected += tree.nodes[at].log_ratio - math.log(len(tree.nodes[parent].children))
                at = parent
            assert log == pytest.approx(expected, abs=1e-12)
    assert len({round(node.log_ratio, 9) for node in tree.nodes}) > 50


@pytest.mark.slow
def test_the_documented_bias_and_its_correction():
    """Values at the root after 2000 rollouts, where 1.125 is right."""
    for correction, value, tolerance in (("none", 0.61, 0.05), ("ipw", 1.11, 0.08)):
        found = [grown(2000, seed=s, correction=correction).nodes[0].value for s in range(5)]
        assert np.mean(found) == pytest.approx(value, abs=tolerance)


def test_rewards_may_be_far_apart():
    """Weights are relative to what was found, and a maximum has probabilities too."""
    tree = Tree(TreeRules(correction="ipw"))
    grow(tree, exact_chain(3), lambda x: -300 * (x[:, 0] - 2) ** 2, 80)
    assert np.isfinite(tree.nodes[0].value)
    best = grown(40, scale=math.inf)
    assert np.exp(best.log_probabilities()).sum() == pytest.approx(1)


def test_rules_are_checked():
    for wrong, match in (
        ({"select": "best"}, "boltzmann or uct"),
        ({"widening": 1.5}, "between 0 and 1"),
        ({"correction": "ipw", "select": "uct"}, "ipw is for boltzmann"),
        ({"candidates": 2, "scale": math.inf}, "drawn at a finite scale"),
        ({"candidates": 0, "select": "uct"}, "1 or more"),
        ({"correction": "ipw", "scale": math.inf}, "ipw is for boltzmann"),
    ):
        with pytest.raises(ValueError, match=match):
            TreeRules(**wrong)
    with pytest.raises(ValueError, match="has not grown"):
        draw(Tree(TreeRules()), 1)
