"""Frechet distance (FID, FD-DINOv2, sFID) as a streaming metric."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .blocks import BlockMetric, kept, summed
from .estimate import Estimate, jackknife
from .moments import Moments, checked, frechet_distance

# Columns of the outer products that are added at a time: only those on and below the diagonal.
STRIP = 128


class FrechetDistance(BlockMetric):
    """Streaming Frechet distance of the features that `update` sees to the set `reference`.

    The states are sums by block (count [K], centred sum [K, D], lower triangle of the centred outer
    products [K, D, D]) in float64, so they add over batches and processes. They are centred on the
    mean of the reference, which removes the cancellation of one-pass covariances. At D = 2048 a
    block takes 34 MB, and as much for the zeros that `reset` returns to. Where every block was
    filled by one process, the sum over processes is exact to the last bit. See `BlockMetric` for
    `blocks`.

    The features may be pool3 of Inception (FID), its early map (sFID, Nash et al. 2021) or those of
    any other extractor; the name of the number has to say which.
    """

    higher_is_better = False

    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, reference: Moments, blocks: int = 20, **kwargs: Any):
        super().__init__(blocks, **{"dist_sync_fn": summed, **kwargs})
        self.reference = reference
        zeros = torch.zeros(blocks, len(reference.mean), len(reference.mean), dtype=torch.float64)
        self.add_state("count", zeros[:, 0, 0].long(), dist_reduce_fx="sum")
        self.add_state("total", zeros[:, 0].clone(), dist_reduce_fx="sum")
        self.add_state("outer", zeros, dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add features [N, D]; ValueError for a wrong shape or a row that is not finite."""
        centre = self.reference.mean.to(self.device)
        centred = checked(features.to(self.device), len(centre)) - centre
        self.count[self.block] += len(centred)
        self.total[self.block] += centred.sum(0)
        outer = self.outer[self.block]
        for first in range(0, len(centre), STRIP):
            last = first + STRIP
            outer[first:last, :last].addmm_(centred[:, first:last].T, centred[:, :last])

    def moments(self, without: int | None = None) -> Moments:
        """The moments of all that `update` saw, or of all but one block."""
        weight = kept(self.blocks, without, self.total)
        n = int(weight @ self.count.double())
        if n < 2:
            left = "" if without is None else f" without block {without}"
            raise ValueError(f"a Frechet distance needs at least 2 samples, got {n}{left}")
        offset = weight @ self.total / n
        # In place: at D = 2048 every copy costs as much as all the rest.
        scatter = torch.tensordot(weight, self.outer, 1).tril_()
        scatter += scatter.tril(-1).T
        scatter.addr_(offset, offset, alpha=-n).div_(n - 1)
        return Moments(n, self.reference.mean.to(offset) + offset, scatter)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar."""
        distance = frechet_distance(self.moments(), self.reference.to(self.device))
        return self.total.new_tensor(distance)

    def estimate(self) -> Estimate:
        """The distance with its jackknife over blocks, the reference held fixed."""
        reference = self.reference.to(self.device)

        def distance(without: int | None) -> float:
            with warnings.catch_warnings():
                if without is not None:
                    # The distance of all samples warns if they are too few: once is enough.
                    warnings.simplefilter("ignore", UserWarning)
                return frechet_distance(self.moments(without), reference)

        with self.synced():
            return jackknife(distance, self.count.double().cpu().numpy())
