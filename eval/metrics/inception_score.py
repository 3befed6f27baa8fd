"""The Inception score as a streaming metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import BlockMetric, kept, summed
from .estimate import Estimate, jackknife
from .moments import checked


class InceptionScore(BlockMetric):
    """exp E KL(p(y | image) || p(y)) of a classifier's logits; the mean over `splits`.

    Salimans et al. 2016, "Improved Techniques for Training GANs". Update u goes to block u mod K =
    `blocks`, consecutive blocks form a split, and the states are sums of p and p log p by block in
    float64: nothing is kept of the samples. The score rises with the size of a split. Published
    ones have 10 splits of shuffled samples (torch-fidelity) or consecutive chunks of 5,000 (ADM):
    give the samples in the order that you mean, in as many equal updates as there are blocks.
    """

    higher_is_better = True

    count: Tensor
    p: Tensor
    p_log_p: Tensor

    def __init__(self, classes: int, splits: int = 10, blocks: int = 20, **kwargs: Any):
        super().__init__(blocks, **{"dist_sync_fn": summed, **kwargs})
        if splits < 1 or blocks % splits:
            raise ValueError(f"blocks ({blocks}) must be a multiple of splits ({splits})")
        self.splits = splits
        zeros = torch.zeros(blocks, classes, dtype=torch.float64)
        self.add_state("count", zeros[:, 0].long(), dist_reduce_fx="sum")
        self.add_state("p", zeros, dist_reduce_fx="sum")
        self.add_state("p_log_p", zeros[:, 0].clone(), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Add logits [N, C]; ValueError for a wrong shape or a row that is not finite."""
        log_p = checked(logits.to(self.device), self.p.shape[1]).log_softmax(1)
        p = log_p.exp()
        self.count[self.block] += len(log_p)
        self.p[self.block] += p.sum(0)
        self.p_log_p[self.block] += (p * log_p).sum()

    def scores(self, without: int | None = None) -> Tensor:
        """The score of every split that has samples, [S]; with one block left out if asked.

        Raises ValueError if none has.
        """
        weight = kept(self.blocks, without, self.p).reshape(self.splits, -1)
        n = (weight * self.count.reshape(self.splits, -1)).sum(1)
        p = (weight[:, :, None] * self.p.reshape(*weight.shape, -1)).sum(1)
        inner = (weight * self.p_log_p.reshape(self.splits, -1)).sum(1)
        some = n > 0
        if not some.any():
            raise ValueError("an Inception score needs at least 1 sample")
        mean = p[some] / n[some, None]
        return torch.exp(inner[some] / n[some] - torch.special.xlogy(mean, mean).sum(1))

    def compute(self) -> Tensor:
        """The mean over splits, a float64 scalar."""
        return self.spread()[0]

    def spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (ddof 0) over the splits, as papers print it."""
        with self.synced():
            scores = self.scores()
        return scores.mean(), scores.std(correction=0)

    def estimate(self) -> Estimate:
        """The score with its jackknife over blocks."""
        with self.synced():
            sizes = self.count.double().cpu().numpy()
            return jackknife(lambda without: float(self.scores(without).mean()), sizes)
