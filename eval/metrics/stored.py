"""Metrics that need all features at once: where they are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from .blocks import BlockMetric
from .moments import checked


class StoredFeatures(BlockMetric):
    """Keeps the features that `update` sees, as float32, and the number of the update of each.

    `reference` [M, D] are the real features. See `BlockMetric` for `blocks`.
    """

    features: list[Tensor]
    updates: list[Tensor]

    def __init__(self, reference: Tensor, blocks: int = 20, **kwargs: Any):
        super().__init__(blocks, **kwargs)
        # No buffer: `.half()` of a model that holds this metric would round it.
        self.reference = checked(reference.detach()).float()
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("updates", [], dist_reduce_fx="cat")

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add features [N, D]; ValueError for a wrong shape or a row that is not finite."""
        self.keep(checked(features.to(self.device), self.reference.shape[1]))

    def keep(self, features: Tensor) -> None:
        """Store checked float64 features, and that they came with the present update."""
        self.features.append(features.float())
        # Not the block: metrics with other `blocks` may share the states in a MetricCollection.
        number = self._update_count - 1
        self.updates.append(torch.full((len(features),), number, device=features.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics, also for a process that has had no samples."""
        if not self.features:
            # It would gather an empty tensor of another shape and dtype from there.
            self.keep(self.reference[:0].to(self.device))
        super().sync(*args, **kwargs)

    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """All features so far [N, D], their blocks [N] and the reference [M, D], float64."""
        features, updates = dim_zero_cat(self.features), dim_zero_cat(self.updates)
        reference = self.reference.to(features)
        return features.double(), updates % self.blocks, reference.double()
