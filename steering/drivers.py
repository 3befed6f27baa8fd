"""Drivers without a tree: best of several, particles with weights, best children."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..samplers import State, advance
from ..samplers.executor import joined
from ..samplers.streams import standard_normal
from ..schedules.base import Float
from .chain import AHEAD, Chain, Reward, checked, child
from .weights import Steered, effective, even, log_mean_exp, normalised, systematic

Potential = Literal["diff", "max", "add"]


def best_of(chain: Chain, reward: Reward, tries: int, *, count: int = 1, seed: int = 0) -> Steered:
    """The best of `tries` independent samples, `count` times over."""
    with chain.spent() as spent:
        seeds = [child(seed, i) for i in range(count * tries)]
        x = chain.finish(chain.begin(seeds), 0, seeds).x
        rewards = chain.reward_of(reward, x).numpy()
    best = rewards.reshape(count, tries).argmax(1) + tries * np.arange(count)
    return Steered(x[best.tolist()], rewards[best], even(count), spent.evaluations, spent.rewards)


def svdd(
    chain: Chain,
    reward: Reward,
    children: int,
    *,
    count: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> Steered:
    """At every level each of `count` samples has `children`, of which one goes on.

    The one of the greatest reward of the x0 that is predicted of it, or, at a temperature, one with
    probabilities like e^(reward / temperature). Samples do not compete with each other (Li et al.
    2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft
    Value-Based Decoding", algorithm 1, with its first estimate of values).
    """
    rng = np.random.default_rng(child(seed, -1))
    with chain.spent() as spent:
        state = chain.begin([child(seed, i) for i in range(count)])
        rewards: Float = np.zeros(0)
        for level in range(chain.depth):
            seeds = [child(seed, level, i) for i in range(count * children)]
            # The greatest of a sum with Gumbel's noise is a draw from the softmax.
            noise = temperature * rng.gumbel(size=(count, children)) if temperature else 0.0
            state, rewards, _ = best_children(chain, reward, state, level, seeds, noise)
    return Steered(state.x, rewards, even(count), spent.evaluations, spent.rewards)


def best_children(
    chain: Chain,
    reward: Reward,
    state: State,
    level: int,
    seeds: Sequence[int],
    noise: Float | float = 0.0,
) -> tuple[State, Float, Float]:
    """Of each sample of a state its best child at the end of a segment.

    A sample has as many children as there are seeds for each; the best has the greatest sum of the
    reward of the x0 that is predicted of it and `noise` [B, children]. The rewards of the best [B],
    and of all [B, children], come with the state.
    """
    count = len(state.x)
    children = len(seeds) // count
    many = chain.move(state.repeat(children), level, seeds)
    x0, many = chain.predict(many)
    rewards = chain.reward_of(reward, x0).numpy()
    groups = rewards.reshape(count, children)
    chosen = (groups + noise).argmax(1) + children * np.arange(count)
    return many.take(chosen.tolist()), rewards[chosen], groups


def smc(
    chain: Chain,
    reward: Reward,
    particles: int,
    *,
    scale: float = 1.0,
    potential: Potential = "diff",
    threshold: float = 0.5,
    twisted: bool = False,
    temper: Callable[[int], float] | None = None,
    seed: int = 0,
) -> Steered:
    """Particles with weights for the law p(x0) e^(scale reward(x0)): Feynman-Kac steering.

    At each level a particle is worth e^(F), which ends as e^(scale reward), whatever it was before:
    with r the rewards of the x0 predicted so far,

        "diff"  F = scale r[now],   "max"  F = scale sum of max r,   "add"  F = scale sum of sum r

    Log weights are added up until their effective number is below `threshold` times the particles;
    then the particles are drawn anew by them, systematically. The weighted mean of anything goes to
    its mean under that law, and the mean of e^`log_z` is the law's normaliser exactly, at any
    number of particles (Singhal et al. 2025, "A General Framework for Inference-time Scaling and
    Steering of Diffusion Models", whose released code forgets weights where it does not resample).

    `twisted` moves the noise of every step by the gradient of F, which weights correct for (Wu et
    al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models"): for
    "diff" and rewards that can be derived. `temper(level)`, rising to 1, multiplies F on the way
    (Kim et al. 2025, "Test-time Alignment of Diffusion Models without Reward Over-optimization").

    Raises ValueError for another potential, and for `twisted` where a segment draws noise elsewhere
    than in its first row, or rewards have no gradient.
    """
    if potential not in get_args(Potential):
        raise ValueError(f"potential is one of {', '.join(get_args(Potential))}, not {potential!r}")
    if twisted and potential != "diff":
        raise ValueError("twisted: for the potential diff")
    for first, last in zip(chain.levels, chain.ends, strict=True):
        if twisted and (not chain.draws(first, first + 1) or chain.draws(first + 1, last)):
            raise ValueError(
                f"twisted: noise is drawn between nodes {first} and {last} elsewhere than in the "
                "first row; leave levels out, and take a solver that draws in every step"
            )
    rng = np.random.default_rng(child(seed, -1))
    log_z = 0.0
    nothing: Float = np.zeros(particles)
    tally, worth, log_weights = nothing, nothing, nothing
    if potential == "max":
        tally = nothing - np.inf
    with chain.spent() as spent:
        state = chain.begin([child(seed, i) for i in range(particles)])
        slope: Tensor | None = None
        for level in range(chain.depth):
            factor = scale * (1.0 if temper is None else temper(level))
            # Of noise alone there is nothing to tell, but by its gradient.
            if twisted:
                rewards, slope, state = sloped(chain, reward, state)
            elif level:
                x0, state = chain.predict(state)
                rewards = chain.reward_of(reward, x0).numpy()
            if twisted or level:
                tally, after = climbed(potential, tally, worth, rewards, factor)
                log_weights, worth = log_weights + after - worth, after
                if effective(log_weights) < threshold * particles:
                    log_z += log_mean_exp(log_weights)
                    chosen = systematic(normalised(log_weights), rng.random())
                    state, worth, tally = state.take(chosen), worth[chosen], tally[chosen]
                    slope = None if slope is None else slope[chosen]
                    log_weights = nothing
            seeds = [child(seed, level, i) for i in range(particles)]
            if slope is None:
                state = chain.move(state, level, seeds)
            else:
                state, ratio = moved(chain, state, level, seeds, factor * slope)
                log_weights = log_weights + ratio
        rewards = chain.reward_of(reward, state.x).numpy()
        log_weights = log_weights + scale * rewards - worth
    log_z += log_mean_exp(log_weights)
    weights = normalised(log_weights)
    return Steered(state.x, rewards, weights, spent.evaluations, spent.rewards, log_z)


def climbed(
    potential: Potential, tally: Float, worth: Float, rewards: Float, factor: float
) -> tuple[Float, Float]:
    """The greatest reward, or the sum, so far, and what particles are worth now."""
    if potential == "diff":
        return rewards, factor * rewards
    tally = np.maximum(tally, rewards) if potential == "max" else tally + rewards
    return tally, worth + factor * tally


def sloped(chain: Chain, reward: Reward, state: State) -> tuple[Float, Tensor, State]:
    """Rewards of the x0 predicted of a state, their gradients, and the state that remembers it."""
    node = chain.table.grid.nodes[state.step]
    values, slopes, memories = [], [], []
    for part in chain.split(state):
        with torch.enable_grad():
            x = part.x.detach().requires_grad_()
            x0, memory = chain.metered(len(x)).recall(x, node, part.memory)
            value = reward(x0)
            if not value.requires_grad:
                raise ValueError(
                    "twisted: the reward of what the denoiser predicts has no gradient: one of the "
                    "two is detached from the state"
                )
            slopes.append(torch.autograd.grad(value.sum(), x)[0])
        values.append(value.detach())
        memories.append({**memory, AHEAD: x0.detach()})
    chain.meter.rewards += len(state.x)
    memory = {name: torch.cat([each[name].detach() for each in memories]) for name in memories[0]}
    found = checked(torch.cat(values), len(state.x)).numpy()
    return found, torch.cat(slopes), replace(state, memory=memory)


@torch.no_grad()
def moved(
    chain: Chain, state: State, level: int, seeds: list[int], slope: Tensor
) -> tuple[State, Float]:
    """A segment whose first noise z is moved to z + s g, and log p - log q: - s g z - s^2 g^2 / 2.

    s is what the row multiplies its own noise with.
    """
    first = chain.levels[level]
    push = float(chain.table.noise[first, first]) * slope
    ready = state.reseed(seeds)
    z = standard_normal(ready.seeds, first, ready.x)
    drawn, parts = z + push, []
    for rows, part in zip(chain.batches(len(seeds)), chain.split(ready), strict=True):
        own = drawn[rows.start : rows.stop]
        denoiser, count = chain.metered(len(rows)), chain.ends[level] - first
        after = advance(part, denoiser, chain.table, count, noise=partial(given, own))
        parts.append(after)
    ratio = -(push * z).flatten(1).sum(1) - push.square().flatten(1).sum(1) / 2
    return joined(parts), ratio.double().cpu().numpy()


def given(z: Tensor, draw: int, x: Tensor) -> Tensor:
    """A noise that is known."""
    return z
