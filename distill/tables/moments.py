"""Means whose distance is the Frechet distance of two sets of features that are nearly alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Axes of the largest variance that count: pairs of them are what it takes, 2,144 for 64.
MOST = 64
# Below this part of the largest variance an axis is none.
LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Moments:
    """Numbers of features [B, D], [B, R (R + 3) / 2], whose means tell sets apart.

    With the mean mu of a set, axes V [D, R] of its largest variances l, and y = V^T (f - mu):

        y_i,   and   y_i y_j / sqrt(2 (l_i + l_j)),   i, j <= R.

    If normal distributions differ from the set's by d in the mean and by E in the covariance, the
    squared distance of the means of these numbers is d^2 + sum_ij E_ij^2 / (2 (l_i + l_j)): the
    Frechet distance, |d|^2 + the squared Bures distance, up to third powers of d and E.
    """

    mean: Tensor
    axes: Tensor
    factors: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """About a set of features [N, D]."""
        known = features.double()
        mean = known.mean(0)
        _, spread, axes = torch.linalg.svd(known - mean, full_matrices=False)
        variances = spread.square()[:MOST] / len(known)
        kept = variances > LEAST * variances[0]
        variances = variances[kept]
        factors = (2 * (variances[:, None] + variances)).rsqrt()
        # A pair stands in the sum twice.
        twice = factors * (2 - torch.eye(len(factors)).to(factors)).sqrt()
        return cls(mean, axes[:MOST][kept].T, twice)

    def __call__(self, features: Tensor) -> Tensor:
        """The numbers of each, float64."""
        y = (features.double() - self.mean) @ self.axes
        i, j = torch.triu_indices(y.shape[1], y.shape[1], device=y.device)
        return torch.cat([y, y[:, i] * y[:, j] * self.factors[i, j]], 1)
