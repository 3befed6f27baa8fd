"""Denoisers that are exactly right: Gaussian, Gaussian mixture, empirical data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..schedules.grid import Node


@dataclass(frozen=True, eq=False)
class Mixture:
    """E[x0 | x] for x0 ~ sum_j w_j N(mean_j, U_j diag(v_j) U_j^T + tail_j (I - U_j U_j^T)).

    Flattened dimension D; `means` [J, D], `log_weights` [J], `vectors` [J, D, R] orthonormal,
    `values` [J, R], `tail` [J]: full covariances (R = D) and low-rank ones alike. Computed in
    float64; x may have any shape [B, ...] with D entries per sample, and keeps its dtype.
    """

    means: Tensor
    log_weights: Tensor
    vectors: Tensor
    values: Tensor
    tail: Tensor

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Posterior mean at alpha, sigma of the node, or of each sample's (see `several`)."""
        log_density, mean = self.components(x, node)
        share = torch.softmax(log_density, dim=1)
        return torch.einsum("bj,bjd->bd", share, mean).reshape(x.shape).to(x.dtype)

    def log_shares(self, x: Tensor, node: Node) -> Tensor:
        """log p(component | x), float64 [B, J]: the perfect classifier of noisy states."""
        return torch.log_softmax(self.components(x, node)[0], dim=1)

    def components(self, x: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """By component: log(w_j p_j(x)) up to a constant [B, J], and E[x0 | x, j] [B, J, D]."""
        means, vectors, values, tail, log_weights = (
            item.to(x.device)
            for item in (self.means, self.vectors, self.values, self.tail, self.log_weights)
        )
        levels: tuple[Any, Any] = (node.alpha, node.sigma)
        alpha, sigma = (
            level.to(x.device).double().view(-1, 1, 1) if isinstance(level, Tensor) else level
            for level in levels
        )
        sigma2 = sigma**2
        flat = x.reshape(len(x), 1, -1).double()
        gap = flat - alpha * means  # [B, J, D]
        inside = torch.einsum("bjd,jdr->bjr", gap, vectors)
        spread, outer = alpha**2 * values + sigma2, alpha**2 * tail[:, None] + sigma2
        rest = means.shape[1] - values.shape[1]
        outside = (gap**2).sum(-1) - (inside**2).sum(-1)
        log_density = -0.5 * (
            (inside**2 / spread).sum(-1)
            + outside.clamp_min(0) / outer[..., 0]
            + spread.log().sum(-1)
            + rest * outer[..., 0].log()
        )
        # Posterior mean of a component: mean + alpha C (alpha^2 C + sigma^2)^-1 gap.
        shrink = tail[:, None] / outer
        lift = alpha * (values / spread - shrink)
        mean = means + alpha * shrink * gap
        mean = mean + torch.einsum("bjr,jdr->bjd", inside * lift, vectors)
        return log_weights + log_density, mean


def mixture(
    means: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    cov: ArrayLike | None = None,
    std: ArrayLike | None = None,
) -> Mixture:
    """The exact denoiser of a Gaussian mixture.

    `means` [J, D]; `weights` [J], equal by default; either `cov` [J, D, D] or [D, D], or isotropic
    `std` (a number or [J]). Raises ValueError for a covariance that is not symmetric and positive
    semi-definite, or weights that are not positive.
    """
    means = np.atleast_2d(np.asarray(means, dtype=np.float64))
    count, dim = means.shape
    w = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (count,) or not (w > 0).all():
        raise ValueError(f"mixture: weights must be {count} positive numbers, got {w.tolist()}")
    if (cov is None) == (std is None):
        raise ValueError("mixture: give either cov or std")
    if std is not None:
        tail = np.broadcast_to(np.square(np.asarray(std, dtype=np.float64)), count)
        vectors, values = np.zeros((count, dim, 0)), np.zeros((count, 0))
    else:
        matrices = np.broadcast_to(np.asarray(cov, dtype=np.float64), (count, dim, dim))
        if not np.allclose(matrices, matrices.swapaxes(1, 2)):
            raise ValueError("mixture: a covariance is not symmetric")
        values, vectors = np.linalg.eigh(matrices)
        if (values < -1e-12 * np.abs(values).max()).any():
            raise ValueError(f"mixture: a covariance has the negative eigenvalue {values.min()}")
        tail = np.zeros(count)
    return low_rank_mixture(means, w, vectors, np.maximum(values, 0), tail)


def low_rank_mixture(
    means: ArrayLike, weights: ArrayLike, vectors: ArrayLike, values: ArrayLike, tail: ArrayLike
) -> Mixture:
    """`Mixture` from arrays: covariances U diag(values) U^T plus `tail` on the rest of space."""
    w = np.asarray(weights, dtype=np.float64)
    arrays = (means, np.log(w / w.sum()), vectors, values, tail)
    return Mixture(*(torch.from_numpy(np.array(array, dtype=np.float64)) for array in arrays))


def gaussian(mean: ArrayLike, cov: ArrayLike | None = None, std: float | None = None) -> Mixture:
    """The exact denoiser of N(mean, cov) or N(mean, std^2); `mean` [D]."""
    return mixture(np.atleast_1d(np.asarray(mean, dtype=np.float64))[None], cov=cov, std=std)


def log_likelihoods(x: Tensor, node: Node, data: Tensor) -> Tensor:
    """log p(x | x0 = data_j) up to a constant, -|x - alpha data_j|^2 / (2 sigma^2), float64 [B, M].

    `x` [B, ...] and `data` [M, ...] have as many entries each.
    """
    flat, rows = (item.reshape(len(item), -1).double() for item in (x, data))
    return -torch.cdist(flat, node.alpha * rows).square() / (2 * node.sigma**2)


def empirical(data: Tensor, chunk: int = 2048) -> Callable[[Tensor, Node], Tensor]:
    """E[x0 | x] when x0 is one of the rows of `data` [M, ...], each equally likely.

    softmax_j(-|x - alpha data_j|^2 / (2 sigma^2)) averages the data. Computed in float64, `chunk`
    rows of data at a time.
    """
    rows = data.reshape(len(data), -1).double()

    def denoise(x: Tensor, node: Node) -> Tensor:
        flat = x.reshape(len(x), -1).double()
        top = torch.full((len(x), 1), -torch.inf, dtype=torch.float64, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(flat)
        for part in rows.to(x.device).split(chunk):
            score = log_likelihoods(flat, node, part)
            # A running maximum keeps the exponentials in range over the chunks.
            new = torch.maximum(top, score.max(1, keepdim=True).values)
            fade, weight = (top - new).exp(), (score - new).exp()
            total = total * fade + weight.sum(1, keepdim=True)
            mean = mean * fade + weight @ part
            top = new
        return (mean / total).reshape(x.shape).to(x.dtype)

    return denoise
