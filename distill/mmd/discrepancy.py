"""The squared maximum mean discrepancy as a loss, in one or several feature spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from ...eval.metrics.kernel import Kernel, gaussian, pair_sums, polynomial

KernelName = Literal["cubic", "rbf", "linear"]
# Real images that tell how alike they are.
MANY = 10_000
# Samples of a class among which there are pairs.
LEAST = 2
KERNELS: tuple[KernelName, ...] = get_args(KernelName)


def kernel(name: KernelName, dim: int) -> Kernel:
    """The kernel of that name for features [N, dim] of unit power.

    "cubic" (x . y / dim + 1)^3 is that of KID, "rbf" exp(-|x - y|^2 / dim), and "linear" x . y /
    dim, which sees means only.
    """
    match name:
        case "cubic":
            return polynomial
        case "rbf":
            return gaussian((dim / 2) ** 0.5)
        case "linear":
            return linear
    raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, not {name!r}")


def linear(x: Tensor, y: Tensor) -> Tensor:
    """X . y / D."""
    return x @ y.T / x.shape[1]


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    pairs: Tensor | None = None,
    apart: Tensor | None = None,
) -> Tensor:
    """The unbiased squared discrepancy of x [N, D] and y [M, D], with its gradient; may be below 0.

        sum_ij W_ij k(x_i, x_j) + sum_{i!=j} k(y_i, y_j) / M(M-1) - 2 sum_i w_i mean_j k(x_i, y_j)

    The `pairs` W [N, N] are all the same but for a diagonal of zeros (Gretton et al. 2012, "A
    Kernel Two-Sample Test", eq. 3), or those of `stratified`; w are their sums over j. The second
    term, which has no gradient, may be known: `apart`. Raises ValueError for fewer than 2.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a discrepancy needs 2 samples a side, got {len(x)} and {len(y)}")
    weights = (stratified(None, len(x)) if pairs is None else pairs).to(x)
    apart = similarity(y, kernel) if apart is None else apart
    across = weights.sum(1) @ kernel(x, y).mean(1)
    return (weights * kernel(x, x)).sum() + apart - 2 * across


def similarity(y: Tensor, kernel: Kernel) -> Tensor:
    """The mean of k(y_i, y_j) over pairs i != j of y [M, D]."""
    every, own = pair_sums(kernel, y)
    return (every - own) / (len(y) * (len(y) - 1))


def stratified(classes: tuple[Tensor, Tensor] | None, count: int) -> Tensor:
    """Weights of the pairs of `count` samples, float64, which sum to 1, of a sample with itself 0.

    `classes` are labels, int64 [count], and the shares of the classes [C]: with them classes count
    by their shares, not by how often they were drawn, which is most of the noise of features that
    tell classes apart. For n samples of a class of share P a pair within has P^2 / n(n-1), and
    one across P P' / n n'. Classes of fewer than `LEAST` samples are counted as one.
    """
    if classes is None:
        classes = (torch.zeros(count, dtype=torch.long), torch.ones(1))
    labels, shares = (each.cpu() for each in classes)
    drawn = torch.bincount(labels, minlength=len(shares))
    rare = drawn.argsort()
    pooled = int((drawn < LEAST).sum())
    while 0 < pooled < len(rare) and drawn[rare[:pooled]].sum() < LEAST:
        pooled += 1
    stratum = torch.arange(len(shares))
    stratum[rare[:pooled]] = rare[0]
    share = torch.zeros(len(shares), dtype=torch.float64)
    share.index_add_(0, stratum, shares.double() / shares.double().sum())
    own = stratum[labels]
    n = torch.bincount(own, minlength=len(shares))[own].double()
    each = share[own] / n
    weights = each[:, None] * each
    within = own[:, None] == own
    return torch.where(within, weights * (n / (n - 1)), weights).fill_diagonal_(0.0)


@dataclass(frozen=True, eq=False)
class Space:
    """A feature space: images [B, C, H, W] about [-1, 1] -> [B, D], and those of real images.

    `identity` is that of what makes the features, `real` is [M, D], and both are divided by `unit`
    for the kernel; `weight` is that of the discrepancy.
    """

    name: str
    identity: str
    features: Callable[[Tensor], Tensor]
    real: Tensor
    kernel: Kernel
    unit: float = 1.0
    weight: float = 1.0

    @cached_property
    def apart(self) -> Tensor:
        """How alike real images are: of all, or of `MANY` evenly among them."""
        some = self.real[:: -(-len(self.real) // MANY)]
        return similarity(some.double() / self.unit, self.kernel)

    def distance(self, found: Tensor, rows: Tensor, pairs: Tensor | None = None) -> Tensor:
        """The weighted discrepancy of features [B, D] from those of the real images `rows`."""
        real = self.real[rows.to(self.real.device)].to(found.device)
        x, y = (each.double() / self.unit for each in (found, real))
        return self.weight * mmd2(x, y, self.kernel, pairs, self.apart.to(x))


def discrepancy(
    spaces: Sequence[Space], found: Sequence[Tensor], rows: Tensor, pairs: Tensor | None = None
) -> Tensor:
    """The sum over spaces, from features in each."""
    every = zip(spaces, found, strict=True)
    return torch.stack([space.distance(each, rows, pairs) for space, each in every]).sum()


def clamped(x: Tensor) -> Tensor:
    """X clamped to [-1, 1], with the gradient of x also where it is outside."""
    return x + (x.clamp(-1, 1) - x).detach()
