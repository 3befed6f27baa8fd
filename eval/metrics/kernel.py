"""Squared maximum mean discrepancies (KID, CMMD) between two feature sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .blocks import kept
from .estimate import Estimate, jackknife
from .neighbours import square_distances
from .stored import StoredFeatures

# Kernel matrix [N, M] of x [N, D] and y [M, D].
Kernel = Callable[[Tensor, Tensor], Tensor]
ROWS = 1024


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3, the kernel of KID (Binkowski et al. 2018, "Demystifying MMD GANs")."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(bandwidth: float) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2)); ValueError if the bandwidth is not positive."""
    if not bandwidth > 0:
        raise ValueError(f"the bandwidth of a Gaussian kernel must be positive, not {bandwidth}")
    return partial(gaussian_of, bandwidth)


def gaussian_of(bandwidth: float, x: Tensor, y: Tensor) -> Tensor:
    """The kernel matrix of `gaussian`, a function that can be pickled."""
    return torch.exp(square_distances(x, y) / (-2 * bandwidth**2))


class Sums(NamedTuple):
    """Sums of a kernel over pairs: `xx` [K, K] and `xy` [K] by the blocks of x, `yy` in all.

    The diagonals of xx [K] and yy are kept aside, `sizes` [K] are those of the blocks of x, and
    `m` is that of y.
    """

    xx: Tensor
    xx_diagonal: Tensor
    xy: Tensor
    yy: Tensor
    yy_diagonal: Tensor
    sizes: Tensor
    m: int

    def mmd2(self, unbiased: bool, without: int | None = None) -> float:
        """The squared discrepancy, without the diagonals if `unbiased`, or with a block left out.

        Gretton et al. 2012, "A Kernel Two-Sample Test", eq. 3 (unbiased) and 5.
        """
        weight, lost = kept(len(self.sizes), without, self.sizes), int(unbiased)
        n = int(weight @ self.sizes)
        if n <= lost:
            raise ValueError(
                f"{n} samples are left without block {without}: take larger subsets, or blocks of "
                "fewer samples"
            )
        xx = weight @ (self.xx @ weight - lost * self.xx_diagonal)
        yy = self.yy - lost * self.yy_diagonal
        xy = weight @ self.xy
        return float(
            xx / (n * (n - lost)) + yy / (self.m * (self.m - lost)) - 2 * xy / (n * self.m)
        )


def pair_sums(kernel: Kernel, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the kernel over all pairs of y [M, D], and over those of one with itself.

    Rows are taken 1024 at a time, so that memory is linear in M.
    """
    every, own = y.new_zeros(()), y.new_zeros(())
    for rows in torch.arange(len(y), device=y.device).split(ROWS):
        matrix = kernel(y[rows], y)
        every += matrix.sum()
        own += matrix.gather(1, rows[:, None]).sum()
    return every, own


def kernel_sums(
    kernel: Kernel,
    x: Tensor,
    y: Tensor,
    blocks: Tensor,
    count: int,
    within: tuple[Tensor, Tensor] | None = None,
) -> Sums:
    """The sums over all pairs of x [N, D] and y [M, D], block `blocks`[i] < `count` for x[i].

    `within` is `pair_sums` of y, where it is known. Rows are taken 1024 at a time, so that memory
    is linear in N and M.
    """
    member = torch.nn.functional.one_hot(blocks, count).to(x)
    xx, xy, x_diagonal = x.new_zeros(count, count), x.new_zeros(count), x.new_zeros(count)
    for rows in torch.arange(len(x), device=x.device).split(ROWS):
        matrix = kernel(x[rows], x)
        xx += member[rows].T @ (matrix @ member)
        x_diagonal += member[rows].T @ matrix.gather(1, rows[:, None])[:, 0]
        xy += member[rows].T @ kernel(x[rows], y).sum(1)
    return Sums(xx, x_diagonal, xy, *(within or pair_sums(kernel, y)), member.sum(0), len(y))


class KernelDistance(StoredFeatures):
    """`scale` x squared maximum mean discrepancy of the features that `update` sees to `reference`.

    The default is the kernel distance of KID: the mean over 100 `subsets` of 1,000 from both sides,
    or of as many as the smaller side has, drawn without replacement by the seed 2020, as
    torch-fidelity draws them; it is unbiased and may be below zero. `subsets=None` takes all pairs
    instead. See `cmmd` for the other use, and `StoredFeatures` for `reference` and `blocks`.
    """

    higher_is_better = False

    def __init__(
        self,
        reference: Tensor,
        kernel: Kernel = polynomial,
        *,
        unbiased: bool = True,
        subsets: int | None = 100,
        subset_size: int = 1000,
        seed: int = 2020,
        scale: float = 1.0,
        blocks: int = 20,
        **kwargs: Any,
    ):
        super().__init__(reference, blocks, **kwargs)
        if subsets is not None and (subsets < 1 or subset_size < 2):
            raise ValueError(
                f"at least 1 subset of at least 2 samples is needed, not {subsets} of {subset_size}"
            )
        self.kernel, self.unbiased, self.scale = kernel, unbiased, scale
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def drawn(self) -> list[Sums]:
        """The kernel sums of every subset, or of everything."""
        x, blocks, y = self.stored()
        if min(len(x), len(y)) < 2:
            raise ValueError(f"a kernel distance needs 2 samples a side, got {len(x)}, {len(y)}")
        if self.subsets is None:
            return [kernel_sums(self.kernel, x, y, blocks, self.blocks)]
        size = min(self.subset_size, len(x), len(y))
        generator = np.random.RandomState(self.seed)

        def draw(side: Tensor) -> Tensor:
            return torch.from_numpy(generator.choice(len(side), size, replace=False)).to(x.device)

        pairs = ((draw(x), draw(y)) for _ in range(self.subsets))
        return [kernel_sums(self.kernel, x[i], y[j], blocks[i], self.blocks) for i, j in pairs]

    def compute(self) -> Tensor:
        """The discrepancy, a float64 scalar; the mean over subsets."""
        return self.spread()[0]

    def spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (ddof 0) over the subsets, as papers print KID."""
        with self.synced():
            values = [self.scale * sums.mmd2(self.unbiased) for sums in self.drawn()]
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        return found.mean(), found.std(correction=0)

    def estimate(self) -> Estimate:
        """The discrepancy with its jackknife over blocks, the reference held fixed."""
        with self.synced():
            drawn, blocks = self.drawn(), self.stored()[1]

        def mean(without: int | None) -> float:
            return self.scale * float(np.mean([s.mmd2(self.unbiased, without) for s in drawn]))

        return jackknife(mean, torch.bincount(blocks, minlength=self.blocks).cpu().numpy())


def cmmd(reference: Tensor, **kwargs: Any) -> KernelDistance:
    """CMMD: biased, Gaussian kernel of bandwidth 10, all pairs, times 1000.

    The features are to be CLIP embeddings of unit length (Jayasumana et al. 2024, "Rethinking FID",
    and its code for the biased estimate and the factor).
    """
    return KernelDistance(
        reference, gaussian(10.0), unbiased=False, subsets=None, scale=1000.0, **kwargs
    )
