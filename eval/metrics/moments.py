"""Moments of feature sets, and the Frechet distance between two of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# A Cholesky factor is taken while its squared pivots span less than this; beyond, small pivots are
# rounding, and their square roots are not small.
SPAN = 1e-10
# Of a sum of singular values, lost by taking them from their squares, at most.
LOST = 1e-10
ROUNDING = 1e-6
# Random vectors beyond the rank.
SPARE = 8
# Columns that are multiplied at a time.
STRIP = 256


@dataclass(frozen=True, eq=False)
class Moments:
    """What the Frechet distance needs: `mean` [D] and unbiased `cov` [D, D], float64, of `n`.

    `n` is None where nobody wrote it down. `known_factor` may give `factor` from a file. Raises
    ValueError for other shapes or types.
    """

    n: int | None
    mean: Tensor
    cov: Tensor
    known_factor: Tensor | None = None

    def __post_init__(self) -> None:
        width = len(self.mean)
        if self.mean.shape != (width,) or self.cov.shape != (width, width):
            shapes = f"{list(self.mean.shape)} and {list(self.cov.shape)}"
            raise ValueError(f"moments must be a mean [D] and a covariance [D, D], not {shapes}")
        if not self.mean.dtype == self.cov.dtype == torch.float64:
            raise ValueError(f"moments must be float64, not {self.mean.dtype}, {self.cov.dtype}")
        if self.known_factor is not None and len(self.known_factor) != width:
            raise ValueError(f"a factor of {len(self.known_factor)} rows for {width} dimensions")

    @cached_property
    def factor(self) -> Tensor:
        """F [D, r] with cov = F F^T; see `factor`. Computed once."""
        return factor(self.cov, self.n) if self.known_factor is None else self.known_factor

    def to(self, device: torch.device) -> Moments:
        """The same on another device, with the factor."""
        if self.mean.device == device:
            return self
        return Moments(self.n, *(part.to(device) for part in (self.mean, self.cov, self.factor)))


def moments(features: Tensor) -> Moments:
    """Moments of `features` [N, D], in float64; ValueError for N < 2, and as `checked` raises."""
    features = checked(features)
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred / (len(features) - 1))


def checked(features: Tensor, width: int | None = None) -> Tensor:
    """`features` in float64; ValueError for a wrong shape, or naming the first row not finite."""
    if features.ndim != 2 or width not in (None, features.shape[1]):
        expected = "[N, D]" if width is None else f"[N, {width}]"
        raise ValueError(f"features must be {expected}, not {list(features.shape)}")
    if not features.is_floating_point():
        raise ValueError(f"features must be floating-point numbers, not {features.dtype}")
    bad = ~features.isfinite().all(1)
    if bad.any():
        count, first = int(bad.sum()), int(bad.int().argmax())
        raise ValueError(f"{count} of {len(features)} feature rows are not finite, first: {first}")
    return features.double()


def factor(cov: Tensor, count: int | None) -> Tensor:
    """F [D, r] with cov = F F^T: Cholesky, or where that is not safe the eigenvectors.

    r is then the numerical rank, at most `count` - 1: the eigenvalues of a singular covariance are
    rounding, and the square root of 1e-16 is 1e-8. Raises ValueError if the rank is higher.
    """
    lower, failed = torch.linalg.cholesky_ex(cov)
    if not failed and lower.diagonal().square().min() > SPAN * cov.diagonal().max():
        return lower
    most = len(cov) if count is None else min(len(cov), count - 1)
    # Within its range, where that is small, a covariance is small, too.
    basis = range_basis(cov, most) if 2 * (most + SPARE) < len(cov) else None
    inner = cov if basis is None else basis.T @ cov @ basis
    values, vectors = torch.linalg.eigh(inner)
    floor = values[-1].clamp(min=0) * len(cov) * torch.finfo(cov.dtype).eps
    keep = slice(len(values) - min(int((values > floor).sum()), most), None)
    found = vectors[:, keep] * values[keep].sqrt()
    check_rank(cov.trace() - found.square().sum(), cov.trace(), count)
    return found if basis is None else basis @ found


def check_rank(lost: Tensor, total: Tensor, count: int | None) -> None:
    """ValueError if leaving out all beyond the rank that `count` samples have lost anything."""
    if lost > ROUNDING * total:
        raise ValueError(
            f"a covariance of {count} samples has a rank below that, and this one has more: the "
            "number of samples is wrong"
        )


def range_basis(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal columns [D, R] whose span holds the range of a matrix [D, D] of at most `rank`.

    The images of as many random vectors span it, and a few more make that well conditioned; Halko,
    Martinsson and Tropp 2011, section 4.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(len(matrix), rank + SPARE, generator=generator, dtype=matrix.dtype)
    return torch.linalg.qr(matrix @ probes.to(matrix.device)).Q


def root_trace(a: Moments, b: Moments) -> Tensor:
    """tr((A B)^(1/2)) of two covariances: the singular values of F^T G, A = F F^T and B = G G^T.

    They are the roots of the eigenvalues of G^T A G, several times faster than the values
    themselves. Rounding leaves an error of e = eps max(s^2) in each eigenvalue, so of e / 2s in its
    root; where that adds up to more than 1e-10 of the sum, F^T G itself is decomposed. There are
    fewer of them than samples.
    """
    most = len(a.mean) if a.n is None else max(a.n - 1, 0)
    squares = torch.linalg.eigvalsh(congruence(a.cov, b.factor)).flip(0)
    check_rank(squares[most:].sum(), squares.sum(), a.n)
    squares = squares[:most]
    values = squares.clamp(min=0).sqrt()
    lost = (torch.finfo(values.dtype).eps * squares[:1] / (2 * values)).sum()
    if lost <= LOST * values.sum():
        return values.sum()
    return torch.linalg.svdvals(a.factor.T @ b.factor).sum()


def congruence(cov: Tensor, factor: Tensor) -> Tensor:
    """G^T A G of a covariance A [D, D] and G [D, R], on and below its diagonal.

    Strip by strip, without the zeros that a triangular G begins its columns with: a third of the
    work of two products.
    """
    strips = range(0, factor.shape[1], STRIP)
    begins = [int((factor[:, i : i + STRIP] != 0).any(1).int().argmax()) for i in strips]
    half = [cov[:, k:] @ factor[k:, i : i + STRIP] for i, k in zip(strips, begins, strict=True)]
    product = torch.cat(half, 1) if half else factor[:, :0]
    result = cov.new_zeros(factor.shape[1], factor.shape[1])
    for i, k in zip(strips, begins, strict=True):
        result[i : i + STRIP, : i + STRIP] = factor[k:, i : i + STRIP].T @ product[k:, : i + STRIP]
    return result


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), of Gaussians with these moments.

    tr((A B)^(1/2)) is the sum of the singular values of F^T G where A = F F^T and B = G G^T: no
    matrix square root, real and accurate also for singular A and B. A set with no more members
    than dimensions warns, because the distance is then dominated by its bias of about
    D / N + D (D + 1) / (4 N) (unit covariance). Raises ValueError for sets of other dimensions or
    fewer than 2 members, and ArithmeticError if a number is not finite, or if rounding made more
    than 1e-6 of the trace negative.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions")
    sizes = [each.n for each in (a, b) if each.n is not None]
    few = min(sizes, default=len(a.mean) + 1)
    if few < 2:
        raise ValueError(f"a Frechet distance needs at least 2 samples on each side, not {few}")
    gap = (a.mean - b.mean).square().sum()
    total = gap + a.cov.trace() + b.cov.trace()
    if not total.isfinite():
        raise ArithmeticError(f"the Frechet distance overflows, or moments are not finite: {total}")
    if few <= len(a.mean):
        warnings.warn(
            f"Frechet distance from {few} samples in {len(a.mean)} dimensions: mostly bias, and "
            "not comparable with that of more samples",
            stacklevel=2,
        )
    distance = float(total - 2 * root_trace(a, b))
    if not distance >= -ROUNDING * float(total):
        raise ArithmeticError(
            f"the Frechet distance came out as {distance:g} of a trace of {float(total):g}: these "
            "are no covariances (symmetric, positive), or the factor belongs to another one"
        )
    return max(0.0, distance)


def half_split_distances(features: Tensor, splits: int, seed: int = 0) -> list[float]:
    """Distances between two random halves of one set: what sampling alone makes of zero."""
    generator = torch.Generator().manual_seed(seed)
    halves = (
        torch.randperm(len(features), generator=generator).tensor_split(2) for _ in range(splits)
    )
    return [frechet_distance(moments(features[i]), moments(features[j])) for i, j in halves]
