"""Frechet distance between feature sets, from streamed float64 moments."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class Moments(NamedTuple):
    """What the Frechet distance needs: size `n`, `mean` [D], unbiased `cov` [D, D]."""

    n: int
    mean: Tensor
    cov: Tensor


def moments(features: Tensor) -> Moments:
    """Moments of `features` [N, D], in float64. Raises ValueError as `checked` does."""
    features = checked(features)
    return Moments(len(features), features.mean(0), features.T.cov())


def checked(features: Tensor, width: int | None = None) -> Tensor:
    """`features` in float64; ValueError for a wrong shape, or naming the first row not finite."""
    if features.ndim != 2 or width not in (None, features.shape[1]):
        expected = "[N, D]" if width is None else f"[N, {width}]"
        raise ValueError(f"features must be {expected}, not {list(features.shape)}")
    bad = ~features.isfinite().all(1)
    if bad.any():
        count, first = int(bad.sum()), int(bad.int().argmax())
        raise ValueError(f"{count} of {len(features)} feature rows are not finite, first: {first}")
    return features.double()


def factor(cov: Tensor, count: int) -> Tensor:
    """F [D, r] with cov = F F^T, r the numerical rank, at most count - 1.

    The rank is cut because the eigenvalues of a singular covariance are rounding, and the square
    root of 1e-16 is 1e-8.
    """
    values, vectors = torch.linalg.eigh(cov)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(cov.dtype).eps
    rank = min(int((values > floor).sum()), count - 1)
    keep = slice(len(values) - rank, None)
    return vectors[:, keep] * values[keep].sqrt()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), of Gaussians with these moments.

    tr((A B)^(1/2)) is the sum of the singular values of F^T G where A = F F^T and B = G G^T: no
    matrix square root, real and accurate also for singular A and B. A set with no more members
    than dimensions warns, because the distance is then dominated by its bias of about
    D / N + D (D + 1) / (4 N) (unit covariance).
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions")
    if min(a.n, b.n) < 2:
        raise ValueError("a Frechet distance needs at least 2 samples on each side")
    few = min(a.n, b.n)
    if few <= len(a.mean):
        warnings.warn(
            f"Frechet distance from {few} samples in {len(a.mean)} dimensions: mostly bias",
            stacklevel=2,
        )
    root = torch.linalg.svdvals(factor(a.cov, a.n).T @ factor(b.cov, b.n)).sum()
    gap = (a.mean - b.mean).square().sum()
    return max(0.0, float(gap + a.cov.trace() + b.cov.trace() - 2 * root))


def half_split_distances(features: Tensor, splits: int, seed: int = 0) -> list[float]:
    """Distances between two random halves of one set: what sampling alone makes of zero."""
    generator = torch.Generator().manual_seed(seed)
    halves = (
        torch.randperm(len(features), generator=generator).tensor_split(2) for _ in range(splits)
    )
    return [frechet_distance(moments(features[i]), moments(features[j])) for i, j in halves]


class FrechetDistance(Metric):
    """Streaming Frechet distance of what `update` sees to the set behind `reference`.

    The states are sums (count, centred sum [D], centred outer products [D, D]) in float64, so they
    add over batches and processes. They are centred on the reference's mean, which removes the
    cancellation of one-pass covariances. `extractor` maps images to features [N, D]; without one
    `update` takes features.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    count: Tensor
    total: Tensor
    outer: Tensor
    mean: Tensor
    cov: Tensor

    def __init__(self, reference: Moments, extractor: nn.Module | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        width = len(reference.mean)
        self.extractor = extractor
        self.reference_size = reference.n
        self.register_buffer("mean", reference.mean.double(), persistent=False)
        self.register_buffer("cov", reference.cov.double(), persistent=False)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(
            "outer", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum"
        )

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Add a batch of images, or of features [N, D] if there is no extractor."""
        features = batch if self.extractor is None else self.extractor(batch)
        centred = checked(features, len(self.mean)) - self.mean
        self.count += len(centred)
        self.total += centred.sum(0)
        self.outer += centred.T @ centred

    def moments(self) -> Moments:
        """The moments of all that `update` saw."""
        n = int(self.count)
        if n < 2:
            raise ValueError(f"a Frechet distance needs at least 2 samples, got {n}")
        offset = self.total / n
        cov = (self.outer - n * torch.outer(offset, offset)) / (n - 1)
        return Moments(n, self.mean + offset, cov)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar."""
        reference = Moments(self.reference_size, self.mean, self.cov)
        return self.mean.new_tensor(frechet_distance(self.moments(), reference))
