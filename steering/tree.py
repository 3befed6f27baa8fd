"""Diffusion tree sampling and search: what was seen of one rollout tells where to begin the next.

Jain et al. 2025, "Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from ..samplers import State
from ..samplers.executor import joined
from ..schedules.base import Float
from ..storage import unbroken
from .chain import Chain, Reward, child
from .weights import Steered, even, log_mean_exp, normalised

# How far above what it is relative to the logarithm of a weight may be.
FAR = 300.0
Select = Literal["boltzmann", "uct"]
Correction = Literal["none", "ipw"]


@dataclass(frozen=True)
class TreeRules:
    """How a tree grows.

    A node of N visits has up to `width` N^`widening` children before one of them is gone down:
    "boltzmann" (DTS) one with probabilities like e^(scale v), "uct" (DTS*) the one of the greatest
    v + `explore` sqrt(log N / N of the child). `scale` is that of the reward in the law p(x0)
    e^(scale reward(x0)); infinite, values are maxima.

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
    rollout came by, `weight` e^(scale value) as the correction knows it, relative to that of the
    tree's offset. The root is on level -1 and has no state; leaves are on the last.
    """

    level: int
    parent: int
    state: State | None
    value: float = 0.0
    visits: int = 1
    weight: float = math.nan
    children: list[int] = field(default_factory=list)


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

        Without a correction e^(scale (r - v of the root)) / prod |children|.
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
        values = np.array([node.value for node in nodes])
        if math.isinf(self.rules.scale):
            best = values == values.max()
            return best / best.sum()
        return normalised(self.rules.scale * values)


@dataclass
class Visit:
    """One way down: the nodes gone through, with the chance that each child was chosen by."""

    path: list[int]
    chances: list[float]


def grow(tree: Tree, chain: Chain, reward: Reward, iterations: int, *, batch: int = 1) -> None:
    """Let a tree grow by so many iterations, in place; it may go on at any time.

    Each goes down from the root to a node that may have another child, draws that, and goes on from
    it to clean data, every state on the way a node of the tree; the reward there changes the values
    of all above. Interrupted, the tree is what it was before the rollouts under way. With `batch`
    many ways down are chosen before their rollouts are made together, which is faster and not quite
    the same: what is on its way counts as visited and has no value.
    """
    done = 0
    while done < iterations:
        rngs = [
            np.random.default_rng(child(tree.seed, -1, tree.iterations + i))
            for i in range(min(batch, iterations - done))
        ]
        known = len(tree.nodes)
        visits: list[Visit] = []
        with chain.spent() as spent:
            try:
                for rng in rngs:
                    visits.append(descend(tree, chain, rng))
                rewards = rolled_out(tree, chain, reward, visits)
            except BaseException:
                take_back(tree, known, visits)
                raise
        with unbroken():
            for visit, found in zip(visits, rewards, strict=True):
                back_up(tree, visit, found)
            done += len(visits)
            tree.iterations += len(visits)
            tree.evaluations += spent.evaluations
            tree.reward_calls += spent.rewards


def descend(tree: Tree, chain: Chain, rng: np.random.Generator) -> Visit:
    """Choose a way down, and add the nodes of a rollout where a node may have another child."""
    rules, path, chances = tree.rules, [0], []
    at = 0
    while True:
        node = tree.nodes[at]
        if node.level == chain.depth:
            break
        if len(node.children) < rules.width * node.visits**rules.widening:
            # Pending until the rollout is made.
            for level in range(node.level + 1, chain.depth + 1):
                tree.nodes.append(TreeNode(level, at, None, value=math.nan))
                tree.nodes[at].children.append(len(tree.nodes) - 1)
                at = len(tree.nodes) - 1
                path.append(at)
                chances.append(math.nan)
            break
        odds = chosen_by(tree, node)
        pick = int(rng.choice(len(odds), p=odds))
        at = node.children[pick]
        path.append(at)
        chances.append(float(odds[pick]))
    for each in path[:-1]:
        tree.nodes[each].visits += 1
    return Visit(path, chances)


def grow_for(tree: Tree, chain: Chain, reward: Reward, budget: int, *, batch: int = 1) -> None:
    """Let a tree grow until it has spent `budget` evaluations, those of before included.

    At most `batch` rollouts at once, and no more than there are evaluations for; the last may spend
    less than one whole run too many.
    """
    while tree.evaluations < budget:
        left = (budget - tree.evaluations) // chain.table.nfe
        many = max(1, min(batch, left))
        grow(tree, chain, reward, many, batch=many)


def take_back(tree: Tree, known: int, visits: list[Visit]) -> None:
    """Leave a tree as it was before ways down whose rollouts were not made."""
    del tree.nodes[known:]
    for node in tree.nodes:
        node.children = [each for each in node.children if each < known]
    for visit in visits:
        for at in visit.path[:-1]:
            if at < known:
                tree.nodes[at].visits -= 1


def chosen_by(tree: Tree, node: TreeNode) -> Float:
    """The chances of the children of a node to be gone down; pending ones have none."""
    rules, corrected = tree.rules, tree.rules.correction == "ipw"
    nodes = [tree.nodes[c] for c in node.children]
    ready = [i for i, c in enumerate(nodes) if not math.isnan(c.weight if corrected else c.value)]
    if not ready:
        return even(len(nodes))
    found = np.zeros(len(nodes))
    if rules.select == "uct":
        score = [
            nodes[i].value + rules.explore * math.sqrt(math.log(node.visits) / nodes[i].visits)
            for i in ready
        ]
        found[ready[int(np.argmax(score))]] = 1.0
        return found
    odds = tree.odds([node.children[i] for i in ready])
    found[ready] = (1 - rules.mixing) * odds + rules.mixing / len(ready) if corrected else odds
    return found


def rolled_out(tree: Tree, chain: Chain, reward: Reward, visits: list[Visit]) -> list[float]:
    """Make the states of the new nodes, level by level for all, and return the rewards at the ends.

    Ways down that end at a leaf that is known have its reward.
    """
    for level in range(chain.depth + 1):
        # In order, each once: one may be on the way of several.
        fresh = {
            at: tree.nodes[at].parent
            for visit in visits
            for at in visit.path
            if tree.nodes[at].level == level and tree.nodes[at].state is None
        }
        if not fresh:
            continue
        seeds = [child(tree.seed, at) for at in fresh]
        if level == 0:
            states = chain.begin(seeds)
        else:
            above = [tree.nodes[parent].state for parent in fresh.values()]
            states = chain.move(joined([s for s in above if s is not None]), level - 1, seeds)
        for i, at in enumerate(fresh):
            tree.nodes[at].state = states.take([i])
    ends = [visit.path[-1] for visit in visits]
    new = [at for at in dict.fromkeys(ends) if math.isnan(tree.nodes[at].value)]
    if new:
        x = torch.cat([known_state(tree.nodes[at]).x for at in new])
        for at, found in zip(new, chain.reward_of(reward, x).tolist(), strict=True):
            tree.nodes[at].value = found
    return [tree.nodes[at].value for at in ends]


def known_state(node: TreeNode) -> State:
    """The state of a node that has one."""
    assert node.state is not None
    return node.state


def back_up(tree: Tree, visit: Visit, found: float) -> None:
    """Change the values of all above the end of a way down."""
    if tree.rules.correction == "ipw":
        back_up_corrected(tree, visit, found)
        return
    for at in reversed(visit.path[:-1]):
        node = tree.nodes[at]
        values = np.array([tree.nodes[c].value for c in node.children])
        node.value = log_mean_exp(values[~np.isnan(values)], tree.rules.scale)


def back_up_corrected(tree: Tree, visit: Visit, found: float) -> None:
    """The same without bias: what came of a child weighs by the chance that it was looked at."""
    scale, mixing = tree.rules.scale, tree.rules.mixing
    relative_to(tree, found)
    sample = math.exp(scale * (found - tree.offset))
    tree.nodes[visit.path[-1]].weight = sample
    steps = list(zip(visit.path, visit.path[1:], visit.chances, strict=False))
    for at, below, chance in reversed(steps):
        node, each = tree.nodes[at], tree.nodes[below]
        fresh = math.isnan(chance)
        if fresh:
            each.weight = sample
        known = [tree.nodes[c].weight for c in node.children]
        known = [weight for weight in known if not math.isnan(weight)]
        mean = sum(known) / len(known)
        if fresh:
            sample = mean
        else:
            gap = sample - each.weight
            step = mixing / len(known) / chance * gap
            each.weight += step
            sample = mean + gap / chance / len(known)
            mean += step / len(known)
        node.value = math.log(max(mean, 1e-300)) / scale + tree.offset


def relative_to(tree: Tree, found: float) -> None:
    """Keep weights within the range of numbers: relative to a reward that none is far above."""
    if math.isnan(tree.offset):
        tree.offset = found
    elif tree.rules.scale * (found - tree.offset) > FAR:
        factor = math.exp(max(tree.rules.scale * (tree.offset - found), -700.0))
        for node in tree.nodes:
            node.weight *= factor
        tree.offset = found


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
