"""The squared maximum mean discrepancy as a loss, in one or several feature spaces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...eval.metrics.kernel import Kernel, gaussian, polynomial

KernelName = Literal["cubic", "rbf", "linear"]
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


def mmd2(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """The unbiased squared discrepancy of x [N, D] and y [M, D], with its gradient; may be below 0.

        sum_{i!=j} k(x_i, x_j) / N(N-1) + sum_{i!=j} k(y_i, y_j) / M(M-1) - 2 sum k(x_i, y_j) / NM

    (Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3.) Raises ValueError for fewer than 2.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a discrepancy needs 2 samples a side, got {len(x)} and {len(y)}")
    within = [
        (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))
        for matrix in (kernel(x, x), kernel(y, y))
    ]
    return within[0] + within[1] - 2 * kernel(x, y).mean()


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

    def distance(self, found: Tensor, rows: Tensor) -> Tensor:
        """The weighted discrepancy of features [B, D] from those of the real images `rows`."""
        real = self.real[rows.to(self.real.device)].to(found.device)
        x, y = (each.double() / self.unit for each in (found, real))
        return self.weight * mmd2(x, y, self.kernel)


def discrepancy(spaces: Sequence[Space], found: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The sum over spaces, from features in each."""
    pairs = zip(spaces, found, strict=True)
    return torch.stack([space.distance(each, rows) for space, each in pairs]).sum()


def clamped(x: Tensor) -> Tensor:
    """X clamped to [-1, 1], with the gradient of x also where it is outside."""
    return x + (x.clamp(-1, 1) - x).detach()
