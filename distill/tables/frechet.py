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
class FrechetCoordinates:
    """Numbers of features [B, D], R (R + 3) / 2 of each, whose means tell sets apart.

    With the mean mu of a set, axes V [D, R] of its largest variances l, and y = V^T (f - mu):

        y_i,   and   y_i y_j / sqrt(2 (l_i + l_j)),   i, j <= R.

    If normal distributions differ from the set's by d in the mean and by E in the covariance, the
    squared distance of the means of these numbers is d^2 + sum_ij E_ij^2 / (2 (l_i + l_j)): the
    Frechet distance, |d|^2 + the squared Bures distance, up to third powers of d and E (Bhatia,
    Jain and Lim 2019, "On the Bures-Wasserstein distance between positive definite matrices").
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FrechetCoordinates:
        """About a set of features [N, D]."""
        known = features.double()
        mean = known.mean(0)
        variances, axes = torch.linalg.eigh((known - mean).T @ (known - mean) / len(known))
        variances, axes = variances.flip(0)[:MOST], axes.flip(1)[:, :MOST]
        kept = variances > LEAST * variances[0]
        return cls(mean, axes[:, kept], variances[kept])

    @property
    def factors(self) -> Tensor:
        """Of the products y_i y_j, i <= j [R (R + 1) / 2]; a pair stands in the sum twice."""
        i, j = self.pairs
        return torch.where(i == j, 1.0, 2.0).div(2 * (self.variances[i] + self.variances[j])).sqrt()

    @property
    def pairs(self) -> Tensor:
        """The axes i and j of every product, int64 [2, R (R + 1) / 2]."""
        size = len(self.variances)
        return torch.triu_indices(size, size, device=self.variances.device)

    @property
    def expected(self) -> Tensor:
        """The means of the numbers over the set itself."""
        i, j = self.pairs
        return torch.cat(
            [
                torch.zeros_like(self.variances),
                self.factors * torch.where(i == j, self.variances[i], 0.0),
            ]
        )

    def __call__(self, features: Tensor) -> Tensor:
        """The numbers of each, float64."""
        y = (features.double() - self.mean) @ self.axes
        i, j = self.pairs
        return torch.cat([y, y[:, i] * y[:, j] * self.factors], 1)
