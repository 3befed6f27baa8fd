"""Diffusion tree sampling and search: what was seen of one rollout tells where to begin the next.

Jain et al. 2025, "Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models".
Here is what a tree knows and what is drawn from it; `growth` has how it grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from ..samplers import State
from ..schedules.base import Float
from .chain import child
from .weights import Steered, even, normalised

Select = Literal["boltzmann", "uct"]
Correction = Literal["none", "ipw"]


@dataclass(frozen=True)
class TreeRules:
    """How a tree grows.

    A node of N visits has up to `width` N^`widening` children before one of them is gone down:
    "boltzmann" (DTS) one with probabilities like e^(scale v), "uct" (DTS*) the one of the greatest
    v + `explore` sqrt(log N / N of the child). `scale` is that of the reward in the law p(x0)
    e^(scale reward(x0)); infinite, values are maxima.

    A rollout goes on from one of `candidates` at every level, by the reward of the x0 that is
    predicted of them, as `svdd` does: so many times the evaluations, for rollouts that are far
    better where a prediction tells of the end. "uct" takes the best; "boltzmann" draws one with
    probabilities like e^(scale reward), and weighs it by p / q, the mean of these over its own, so
    that means under the law stay what they are.

    Boltzmann trees visit lucky children again and unlucky ones never, so that their values are too
    low for a very long time. `correction` "ipw" chooses children with at least a share `mixing` of
    evenly, and weighs what is found by how likely it was to be looked at, which leaves values
    without bias.
    """

    scale: float = 1.0
    select: Select = "boltzmann"
    width: float = 2.0
    widening: float = 0.8
    explore: float = 1.0
    correction: Correction = "none"
    mixing: float = 0.2
    candidates: int = 1

    def __post_init__(self) -> None:
        if self.select not in get_args(Select) or self.correction not in get_args(Correction):
            raise ValueError(
                f"a tree selects by {' or '.join(get_args(Select))}, and its correction is "
                f"{' or '.join(get_args(Correction))}, not {self.select!r} and {self.correction!r}"
            )
        if not (self.width > 0 and 0 < self.widening <= 1 and self.scale >= 0):
            raise ValueError(
                f"width {self.width} must be above 0, widening {self.widening} between 0 and 1, "
                f"scale {self.scale} 0 or more"
            )
        if self.candidates < 1:
            raise ValueError(f"candidates are 1 or more, not {self.candidates}")
        if self.candidates > 1 and self.select == "boltzmann" and not 0 < self.scale < math.inf:
            raise ValueError("candidates of boltzmann are drawn at a finite scale above 0")
        if self.correction == "ipw" and (
            self.select != "boltzmann"
            or not (0 < self.mixing <= 1)
            or not 0 < self.scale < math.inf
        ):
            raise ValueError(
                "ipw is for boltzmann, a mixing between 0 and 1, and a finite scale above 0"
            )


@dataclass(eq=False)
class TreeNode:
    """A state on some level, and what is known of what comes of it.

    `value` is (1 / scale) log of the mean of e^(scale reward) below it, `visits` how often a
    rollout came by. `log_ratio` is log p / q of a node that was drawn from among several by q and
    not by p, the law of its level. `weight` is p / q e^(scale value) as the correction knows it,
    relative to that of the tree's offset. The root is on level -1 and has no state; leaves are on
    the last.
    """

    level: int
    parent: int
    state: State | None
    value: float = 0.0
    visits: int = 1
    weight: float = math.nan
    log_ratio: float = 0.0
    children: list[int] = field(default_factory=list)

    def worth(self, scale: float) -> float:
        """The value that it has among the children of its parent."""
        return self.value + self.log_ratio / scale if self.log_ratio else self.value


@dataclass(eq=False)
class Tree:
    """A tree over the levels of a chain, which grows by `grow` and is drawn from by `draw`.

    `nodes[0]` is the root. `offset` is what weights are relative to.
    """

    rules: TreeRules
    seed: int = 0
    nodes: list[TreeNode] = field(default_factory=lambda: [TreeNode(-1, -1, None)])
    iterations: int = 0
    evaluations: int = 0
    reward_calls: int = 0
    offset: float = math.nan

    @property
    def leaves(self) -> list[int]:
        """The leaves in the order in which they were found."""
        last = max(node.level for node in self.nodes)
        return [i for i, node in enumerate(self.nodes) if node.level == last and last >= 0]

    def log_probabilities(self) -> Float:
        """log P of each of `leaves` under `draw`.

        Without a correction e^(scale (r - v of the root)) prod (p / q) / |children|.
        """
        known = {0: 0.0}
        for i, node in enumerate(self.nodes):
            if node.children:
                with np.errstate(divide="ignore"):
                    logs = np.log(self.odds(node.children))
                for at, each in zip(node.children, logs.tolist(), strict=True):
                    known[at] = known[i] + each
        return np.array([known[i] for i in self.leaves])

    def odds(self, children: list[int]) -> Float:
        """The probabilities of some children of a node, by their values."""
        nodes = [self.nodes[c] for c in children]
        if self.rules.correction == "ipw":
            weights = np.array([max(node.weight, 0.0) for node in nodes])
            return weights / weights.sum() if weights.sum() > 0 else even(len(nodes))
        values = np.array([node.worth(self.rules.scale) for node in nodes])
        if math.isinf(self.rules.scale):
            best = values == values.max()
            return best / best.sum()
        return normalised(self.rules.scale * values)


def known_state(node: TreeNode) -> State:
    """The state of a node that has one."""
    assert node.state is not None
    return node.state


def fittest(tree: Tree, count: int) -> Steered:
    """The `count` leaves of the greatest rewards, the best first; all of them, if there are fewer.

    ValueError for a tree without leaves.
    """
    if not tree.leaves:
        raise ValueError("this tree has not grown: it has no leaves")
    found = sorted((tree.nodes[i] for i in tree.leaves), key=lambda node: -node.value)[:count]
    return ends_of(tree, found)


def draw(tree: Tree, count: int, *, seed: int = 0) -> Steered:
    """Samples of a finished tree, which cost nothing: down from the root by the values.

    "boltzmann" draws children with their odds, so that leaves may come more than once; "uct" takes
    the best child always. ValueError for a tree without leaves.
    """
    if len(tree.nodes) == 1:
        raise ValueError("this tree has not grown: nothing to draw from")
    rng = np.random.default_rng(child(seed, tree.seed))
    found = []
    for _ in range(count):
        node = tree.nodes[0]
        while node.children:
            odds = tree.odds(node.children)
            pick = (
                int(odds.argmax()) if tree.rules.select == "uct" else rng.choice(len(odds), p=odds)
            )
            node = tree.nodes[node.children[pick]]
        found.append(node)
    return ends_of(tree, found)


def ends_of(tree: Tree, found: list[TreeNode]) -> Steered:
    """Some leaves, each of the same weight."""
    x = torch.cat([known_state(node).x for node in found])
    rewards = np.array([node.value for node in found])
    scale = tree.rules.scale
    log_z = None if math.isinf(scale) else scale * tree.nodes[0].value
    return Steered(x, rewards, even(len(found)), tree.evaluations, tree.reward_calls, log_z)
