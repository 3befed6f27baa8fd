"""Normal laws of data in a few passes over them, of any number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from .exact import Mixture

# Gives all data anew, batch by batch: samples [B, ...], and which law each is to belong to [B].
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
# Of the range finder: directions beyond those that are kept, and passes over the data.
SPARE, PASSES = 32, 4


class Moments(NamedTuple):
    """Of J groups: counts [J], means [J, D], total variances [J], covariances times a basis."""

    counts: Tensor
    means: Tensor
    totals: Tensor
    products: Tensor


def fit_gaussian(
    batches: Batches,
    groups: int = 1,
    rank: int | None = None,
    *,
    passes: int = PASSES,
    seed: int = 0,
) -> Mixture:
    """The normal law of each group of samples, weighted by their numbers; float64 throughout.

    Covariances are unbiased (1 / (n - 1)). Without `rank` they are whole, from one pass that holds
    [J, D, D] numbers. With it, the `rank` leading directions of each come from randomised subspace
    iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4) with the covariance applied by
    streaming: `passes` of them (at least 2) that hold [J, D, rank + 32], and all the variance that
    is left is spread over the other D - rank directions, as `tail`.

    `batches()` gives all data anew: samples [B, ...] and their groups [B], from 0 to `groups` - 1.
    Raises ValueError for a group of fewer than 2 samples, and for data that are not finite.
    """
    if (rank is not None and rank < 0) or passes < 2:
        raise ValueError(f"a rank is 0 or more, in 2 passes or more; got {rank} in {passes}")
    first = next(iter(batches()), None)
    if first is None:
        raise ValueError("there are no data to fit a law to")
    # Near enough to all means that no digits cancel.
    origin = first[0].flatten(1).double().mean(0)
    dim = len(origin)
    if rank is None or passes_for(dim, rank, passes) == 1:
        found = moments(batches, groups, origin, None)
        values, vectors = torch.linalg.eigh(symmetric(found.products))
    else:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(dim, rank + SPARE, generator=generator, dtype=torch.float64)
        basis = random.expand(groups, -1, -1)
        for _ in range(passes - 1):
            basis = torch.linalg.qr(moments(batches, groups, origin, basis).products).Q
        found = moments(batches, groups, origin, basis)
        # Rayleigh and Ritz: the covariance within the space that was found.
        values, inner = torch.linalg.eigh(symmetric(basis.mT @ found.products))
        vectors = basis @ inner
    kept = dim if rank is None else min(rank, dim)
    # eigh has the smallest first.
    values = values.flip(-1)[:, :kept].clamp_min(0)
    vectors = vectors.flip(-1)[:, :, :kept]
    left = (found.totals - values.sum(1)).clamp_min(0)
    tail = left / (dim - kept) if kept < dim else torch.zeros_like(left)
    log_weights = (found.counts / found.counts.sum()).log()
    return Mixture(found.means, log_weights, vectors.contiguous(), values, tail)


def passes_for(dim: int, rank: int | None, passes: int = PASSES) -> int:
    """How often `fit_gaussian` goes over all data: once where every direction has room."""
    return 1 if rank is None or rank + SPARE >= dim else passes


def moments(batches: Batches, groups: int, origin: Tensor, basis: Tensor | None) -> Moments:
    """One pass: means and variances, and each covariance times `basis` [J, D, K] (None: itself)."""
    dim = len(origin)
    counts = torch.zeros(groups, dtype=torch.float64)
    sums = torch.zeros(groups, dim, dtype=torch.float64)
    squares = torch.zeros(groups, dtype=torch.float64)
    products = torch.zeros(groups, dim, dim if basis is None else basis.shape[2]).double()
    for x, group in batches():
        flat = x.flatten(1).double() - origin
        for j in group.unique().tolist():
            if not 0 <= j < groups:
                raise ValueError(f"a sample belongs to group {j}, and there are {groups}")
            rows = flat[group == j]
            counts[j] += len(rows)
            sums[j] += rows.sum(0)
            squares[j] += rows.square().sum()
            products[j].addmm_(rows.T, rows if basis is None else rows @ basis[j])
    few = (counts < 2).nonzero().flatten().tolist()
    if few:
        raise ValueError(
            f"a covariance needs 2 samples: law {few[0]} of {groups} has {int(counts[few[0]])}"
        )
    if not squares.isfinite().all():
        raise ValueError("the data are not finite")
    gaps = sums / counts[:, None]
    along = gaps[:, None] if basis is None else gaps[:, None] @ basis
    products -= counts[:, None, None] * gaps[:, :, None] * along
    totals = squares - counts * gaps.square().sum(1)
    free = counts - 1
    return Moments(counts, gaps + origin, totals / free, products / free[:, None, None])


def symmetric(matrices: Tensor) -> Tensor:
    """What is left of them without rounding."""
    return (matrices + matrices.mT) / 2


def clusters(samples: Tensor, count: int, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A function that gives the cluster of each sample: the nearest of `count` centres, int64 [B].

    The centres are those of k-means on `samples` [M, ...] (some of the data), begun as k-means++.
    ValueError if there are fewer samples than clusters, or one is left empty.
    """
    if not 1 <= count <= len(samples):
        raise ValueError(f"{count} clusters of {len(samples)} samples")
    points = samples.flatten(1).double().numpy()
    found, _ = kmeans2(points, count, iter=30, minit="++", seed=seed, missing="raise")
    centres = torch.from_numpy(np.asarray(found))
    return lambda x: torch.cdist(x.flatten(1).double(), centres).argmin(1)
