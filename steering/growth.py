"""How a tree grows: ways down, rollouts from where they end, and what these say of all above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..samplers import State
from ..samplers.executor import joined
from ..schedules.base import Float
from ..storage import unbroken
from .chain import Chain, Reward, child
from .drivers import best_children
from .tree import Tree, TreeNode, known_state
from .weights import even, log_mean_exp

# How far above what it is relative to the logarithm of a weight may be.
FAR = 300.0


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


def grow_for(tree: Tree, chain: Chain, reward: Reward, budget: int, *, batch: int = 1) -> None:
    """Let a tree grow until it has spent `budget` evaluations, those of before included.

    At most `batch` rollouts at once, and no more than there are evaluations for; the last may spend
    less than one whole rollout too many.
    """
    candidates = tree.rules.candidates
    while tree.evaluations < budget:
        left = (budget - tree.evaluations) // (candidates * chain.cost(candidates > 1))
        many = max(1, min(batch, left))
        grow(tree, chain, reward, many, batch=many)


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
            above = joined([known_state(tree.nodes[parent]) for parent in fresh.values()])
            if tree.rules.candidates == 1:
                states = chain.move(above, level - 1, seeds)
            else:
                states = looking_ahead(tree, chain, reward, above, level - 1, list(fresh), seeds)
        for i, at in enumerate(fresh):
            tree.nodes[at].state = states.take([i])
    ends = [visit.path[-1] for visit in visits]
    new = [at for at in dict.fromkeys(ends) if math.isnan(tree.nodes[at].value)]
    if new:
        x = torch.cat([known_state(tree.nodes[at]).x for at in new])
        for at, found in zip(new, chain.reward_of(reward, x).tolist(), strict=True):
            tree.nodes[at].value = found
    return [tree.nodes[at].value for at in ends]


def looking_ahead(
    tree: Tree,
    chain: Chain,
    reward: Reward,
    above: State,
    level: int,
    fresh: Sequence[int],
    seeds: Sequence[int],
) -> State:
    """The states of new nodes, each one of several candidates; with `log_ratio` in the nodes."""
    rules = tree.rules
    every = [child(seed, i) for seed in seeds for i in range(rules.candidates)]
    if rules.select == "uct":
        return best_children(chain, reward, above, level, every)[0]
    rngs = [np.random.default_rng(child(seed, -1)) for seed in seeds]
    noise = np.stack([rng.gumbel(size=rules.candidates) for rng in rngs]) / rules.scale
    states, rewards, groups = best_children(chain, reward, above, level, every, noise)
    for at, own, group in zip(fresh, rewards, groups, strict=True):
        tree.nodes[at].log_ratio = rules.scale * (log_mean_exp(group, rules.scale) - float(own))
    return states


def back_up(tree: Tree, visit: Visit, found: float) -> None:
    """Change the values of all above the end of a way down."""
    if tree.rules.correction == "ipw":
        back_up_corrected(tree, visit, found)
        return
    for at in reversed(visit.path[:-1]):
        node = tree.nodes[at]
        values = np.array([tree.nodes[c].worth(tree.rules.scale) for c in node.children])
        node.value = log_mean_exp(values[~np.isnan(values)], tree.rules.scale)


def back_up_corrected(tree: Tree, visit: Visit, found: float) -> None:
    """The same without bias: what came of a child weighs by the chance that it was looked at."""
    scale, mixing = tree.rules.scale, tree.rules.mixing
    relative_to(tree, found)
    sample = math.exp(scale * (found - tree.offset))
    steps = list(zip(visit.path, visit.path[1:], visit.chances, strict=False))
    for at, below, chance in reversed(steps):
        node, each = tree.nodes[at], tree.nodes[below]
        fresh = math.isnan(chance)
        sample *= math.exp(each.log_ratio)
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
