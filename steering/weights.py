"""Weighted samples: means of exponentials, effective numbers, resampling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..schedules.base import Float


@dataclass(frozen=True, eq=False)
class Steered:
    """What a driver ends with: samples, their rewards and weights, and what it cost.

    `x` [B, ...]; `rewards` float64 [B]; `weights` float64 [B] add up to 1, and are even where
    samples were drawn rather than weighed. `log_z` is the logarithm of an estimate of E[e^(scale
    reward)], of the drivers that have one. `evaluations` counts the denoiser, once for each sample,
    `reward_calls` the reward.
    """

    x: Tensor
    rewards: Float
    weights: Float
    evaluations: int
    reward_calls: int
    log_z: float | None = None

    @property
    def best(self) -> Tensor:
        """The sample of the greatest reward."""
        return self.x[int(self.rewards.argmax())]

    def drawn(self, count: int, seed: int = 0) -> Steered:
        """`count` samples drawn by the weights, systematically; they are even then."""
        u = float(np.random.default_rng(seed).random())
        rows = systematic(self.weights, u, count)
        return replace(self, x=self.x[rows], rewards=self.rewards[rows], weights=even(count))

    def fittest(self, count: int) -> Steered:
        """The `count` samples of the greatest rewards, the best first."""
        rows = np.argsort(-self.rewards, kind="stable")[:count].tolist()
        return replace(self, x=self.x[rows], rewards=self.rewards[rows], weights=even(len(rows)))

    def mean_reward(self) -> float:
        """Of the weighted samples."""
        return float(self.weights @ self.rewards)


def even(count: int) -> Float:
    """Weights of samples that were drawn."""
    return np.full(count, 1 / count)


def log_mean_exp(values: Float, scale: float = 1.0) -> float:
    """(1 / scale) log mean e^(scale v): between the mean (scale 0) and the maximum (infinite)."""
    top = float(np.max(values))
    if not np.isfinite(top) or scale == np.inf:
        return top
    if scale == 0:
        return float(np.mean(values))
    # Near 0 the mean of e^(scale (v - top)) - 1 keeps its digits.
    return top + float(np.log1p(np.mean(np.expm1(scale * (values - top))))) / scale


def normalised(log_weights: Float) -> Float:
    """Weights that add up to 1."""
    weights = np.exp(log_weights - np.max(log_weights))
    return np.asarray(weights / weights.sum())


def effective(log_weights: Float) -> float:
    """How many even samples are worth as much: (sum w)^2 / sum w^2."""
    return float(1 / np.square(normalised(log_weights)).sum())


def systematic(weights: Float, u: float, count: int | None = None) -> list[int]:
    """Indices of `count` samples, each about as often as its weight says; u in [0, 1).

    As many as there are, where no number is given. Sample i comes floor or ceil of n w_i times, n
    w_i in the mean over u.
    """
    count = len(weights) if count is None else count
    places = (np.arange(count) + u) / count
    found = np.searchsorted(np.cumsum(weights), places, side="right")
    return np.asarray(found.clip(max=len(weights) - 1)).tolist()
