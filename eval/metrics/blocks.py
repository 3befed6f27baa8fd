"""What the streaming metrics share: samples by block, and the states of all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class BlockMetric(Metric):
    """A metric of samples in blocks: update u, counted from 0, goes to block u mod `blocks`.

    Blocks are what `jackknife` leaves out, for standard errors. An empty update skips a block.
    Raises ValueError if `blocks` is not positive.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, blocks: int, **kwargs: Any):
        super().__init__(**kwargs)
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {blocks}")
        self.blocks = blocks

    @property
    def block(self) -> int:
        """The block of the present update."""
        return (self._update_count - 1) % self.blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its own value."""
        # Merged as states, which is the other way, all batches would be update 0.
        return self._forward_full_state_update(*args, **kwargs)

    @contextmanager
    def synced(self) -> Iterator[None]:
        """The states of all processes inside; all have to enter, and `compute` does it itself."""
        within = self._is_synced
        if not within:
            self.sync(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync)
        try:
            yield
        finally:
            if self._is_synced and not within:
                self.unsync()


def kept(blocks: int, without: int | None, like: Tensor) -> Tensor:
    """1 for every block but 0 for the one left out, [K], on the device of `like` in float64."""
    return torch.tensor(
        [float(k != without) for k in range(blocks)], dtype=torch.float64, device=like.device
    )


def summed(state: Tensor, group: Any = None) -> list[Tensor]:
    """The sum of a state over processes, as the list of one that a `dist_sync_fn` may return.

    torchmetrics would gather the states of all processes in each before adding them.
    """
    total = state.clone()
    torch.distributed.all_reduce(total, group=group)
    return [total]
