"""The drivers by name, each for a number of evaluations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .chain import Chain, Reward
from .drivers import best_of, smc, svdd
from .growth import grow_for
from .tree import Tree, TreeRules, draw, fittest
from .weights import Steered


class Driver(NamedTuple):
    """What a driver is for, and how it spends `budget` evaluations on `count` samples.

    `run(chain, reward, budget, count=.., scale=.., seed=..)` returns `count` samples. Of trees
    `rules` says how they grow.
    """

    summary: str
    run: Callable[..., Steered]
    rules: Callable[[float], TreeRules] | None = None


def best_for(
    chain: Chain, reward: Reward, budget: int, *, count: int = 1, scale: float = 1.0, seed: int = 0
) -> Steered:
    """The best of all samples; the reward's scale changes nothing."""
    tries = share(chain, budget, count) * count
    return best_of(chain, reward, 1, count=tries, seed=seed).fittest(count)


def svdd_for(
    chain: Chain, reward: Reward, budget: int, *, count: int = 1, scale: float = 1.0, seed: int = 0
) -> Steered:
    """`svdd`, which takes the best children; the reward's scale changes nothing."""
    children = share(chain, budget, count, looked_at=True)
    return svdd(chain, reward, children, count=count, seed=seed)


def smc_for(
    chain: Chain, reward: Reward, budget: int, *, count: int = 1, scale: float = 1.0, seed: int = 0
) -> Steered:
    """`smc` with all the particles that there are evaluations for; `count` drawn by weight."""
    particles = share(chain, budget, 1, looked_at=True)
    return smc(chain, reward, particles, scale=scale, seed=seed).drawn(count, seed)


def tree_for(
    rules: Callable[[float], TreeRules],
    returned: Callable[[Tree, int, int], Steered],
    chain: Chain,
    reward: Reward,
    budget: int,
    *,
    count: int = 1,
    scale: float = 1.0,
    seed: int = 0,
    batch: int = 1,
    tree: Tree | None = None,
) -> Steered:
    """A tree that grows by `rules(scale)`, and what it has then; `tree` is grown on."""
    tree = Tree(rules(scale), seed) if tree is None else tree
    candidates = tree.rules.candidates
    share(chain, budget, candidates, looked_at=candidates > 1)
    grow_for(tree, chain, reward, budget, batch=batch)
    return returned(tree, count, seed)


def dts_rules(scale: float) -> TreeRules:
    """Those of DTS: narrower than published, looking ahead, and without the bias of luck."""
    return TreeRules(scale, widening=0.7, candidates=2, correction="ipw")


def dts_star_rules(scale: float) -> TreeRules:
    """Those of DTS*: narrower than published, for thousands of evaluations, and looking ahead."""
    return TreeRules(scale, "uct", width=2.0, widening=0.5, explore=0.3, candidates=4)


def share(chain: Chain, budget: int, count: int, looked_at: bool = False) -> int:
    """How many whole runs there are evaluations for, for each of `count` samples.

    ValueError where there is none.
    """
    calls = chain.cost(looked_at)
    if budget < calls * count:
        raise ValueError(
            f"{budget} evaluations are not enough for {count} x {calls}: so many runs of "
            f"{chain.table.name} at least"
        )
    return budget // (calls * count)


DRIVERS = {
    "best-of": Driver("independent samples, of which the best are kept", best_for),
    "svdd": Driver("at every level the best of several children goes on", svdd_for),
    "smc": Driver("particles with weights, for the law p(x0) e^(scale reward)", smc_for),
    "dts": Driver(
        "a tree for that law: what was seen tells where to go on",
        partial(tree_for, dts_rules, lambda tree, count, seed: draw(tree, count, seed=seed)),
        dts_rules,
    ),
    "dts-star": Driver(
        "a tree that searches for the best",
        partial(tree_for, dts_star_rules, lambda tree, count, seed: fittest(tree, count)),
        dts_star_rules,
    ),
}
