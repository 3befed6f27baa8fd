"""Trees in files, and trees that are interrupted."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import exact, guidance
from fewstep.schedules import VPLinear, grid
from fewstep.steering import Chain, Tree, TreeRules, draw, grow, load_tree, save_tree
from fewstep.steering import growth as module

from .chains import exact_chain, reward


def multistep_chain(levels=(0, 2, 4, 6)):
    """One whose states hold outputs, and what a denoiser remembers."""
    table = samplers.build("sde-dpmpp-2m", grid(VPLinear(), 8, "uniform"))
    pair = exact.gaussian([0.5], std=0.4), exact.gaussian([0.0], std=1.0)
    guided = guidance.apg(*pair, 2.0, momentum=-0.5)
    return Chain(table, lambda size: guided, (1,), levels)


def same(a, b):
    assert (a.rules, a.seed, a.iterations, a.evaluations, a.reward_calls) == (
        *(b.rules, b.seed, b.iterations),
        *(b.evaluations, b.reward_calls),
    )
    assert len(a.nodes) == len(b.nodes)
    for one, other in zip(a.nodes, b.nodes, strict=True):
        assert (one.level, one.parent, one.visits) == (other.level, other.parent, other.visits)
        assert one.children == other.children
        np.testing.assert_equal([one.value, one.weight], [other.value, other.weight])
        assert (one.state is None) == (other.state is None)
        if one.state is not None:
            assert torch.equal(one.state.x, other.state.x)


@pytest.mark.parametrize("made", [exact_chain, multistep_chain])
@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("correction", ["none", "ipw"])
def test_a_tree_that_was_saved_goes_on_as_if_it_had_not_been(
    made, correction, candidates, tmp_path
):
    chain, rules = made(), TreeRules(correction=correction, scale=2.0, candidates=candidates)
    whole, part = Tree(rules, 3), Tree(rules, 3)
    grow(whole, chain, reward, 40)
    grow(part, chain, reward, 25)
    save_tree(part, chain, tmp_path / "tree.safetensors")
    again = load_tree(tmp_path / "tree.safetensors", made())
    same(again, part)
    grow(again, made(), reward, 15)
    same(again, whole)
    assert torch.equal(draw(again, 20).x, draw(whole, 20).x)


def test_infinite_scales_and_roots_alone_are_saved(tmp_path):
    chain, tree = exact_chain(), Tree(TreeRules(scale=float("inf")))
    save_tree(tree, chain, tmp_path / "tree")
    same(load_tree(tmp_path / "tree", chain), tree)


def test_other_files_are_refused(tmp_path):
    chain, tree = exact_chain(), Tree(TreeRules())
    grow(tree, chain, reward, 3)
    path = tmp_path / "tree"
    with pytest.raises(FileNotFoundError, match="no tree"):
        load_tree(path, chain)
    save_tree(tree, chain, path)
    with pytest.raises(ValueError, match="another table"):
        load_tree(path, exact_chain(6))
    with pytest.raises(ValueError, match="another table"):
        load_tree(path, exact_chain(levels=(0, 2)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged"):
        load_tree(path, chain)


def test_an_interrupted_tree_is_what_it_was():
    """Whenever the reward, or the denoiser, is cut off; and it goes on to the same end."""
    rules = TreeRules(width=1.0, widening=0.5)
    whole, cut, chain = Tree(rules, 1), Tree(rules, 1), exact_chain()
    grow(whole, chain, reward, 24, batch=4)

    def until(count):
        def watch(meter):
            if meter.evaluations > count:
                raise KeyboardInterrupt

        return watch

    for count in (7, 31, 25, 9):
        other = exact_chain()
        other.meter.watch = until(count)
        before = cut.iterations
        with pytest.raises(KeyboardInterrupt):
            grow(cut, other, reward, 24 - before, batch=4)
        assert cut.iterations % 4 == 0
        kept = [node.visits for node in cut.nodes]
        assert all(node.state is not None for node in cut.nodes[1:])
        assert not np.isnan([node.value for node in cut.nodes]).any()
        assert kept[0] == cut.iterations + 1
    assert 0 < cut.iterations < 24
    grow(cut, chain, reward, 24 - cut.iterations, batch=4)
    cut.evaluations, cut.reward_calls = whole.evaluations, whole.reward_calls
    same(cut, whole)


def test_an_interruption_of_what_is_counted_waits(monkeypatch):
    """Asked to end between two rollouts that are backed up, a tree has both."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    backed, calls = module.back_up, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        backed(*given)

    cut, whole = Tree(TreeRules(), 5), Tree(TreeRules(), 5)
    monkeypatch.setattr(module, "back_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grow(cut, exact_chain(), reward, 8, batch=4)
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    grow(whole, exact_chain(), reward, 4, batch=4)
    same(cut, whole)


def test_trees_are_about_something(tmp_path):
    chain, tree = exact_chain(), Tree(TreeRules())
    grow(tree, chain, reward, 2)
    save_tree(tree, chain, tmp_path / "tree", about="class:3")
    same(load_tree(tmp_path / "tree", chain, about="class:3"), tree)
    with pytest.raises(ValueError, match="it is about 'class:3', not 'class:7'"):
        load_tree(tmp_path / "tree", chain, about="class:7")
