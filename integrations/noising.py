"""Noise on data: the level of a timestep, in a run or in training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..schedules import Grid
from ..schedules.base import Float
from .memory import WIDE
from .request import Config
from .training import training_levels


def lookup(grid: Grid, labels: Float) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which labels [B] are of nodes that a network is asked at, and of which: the second of two."""
    same = labels.astype(np.float32)[:, None] == grid.label[:-1].astype(np.float32)
    second = same & (same.cumsum(1) == 2)
    return same.any(1), np.where(second.any(1), second.argmax(1), same.argmax(1))


def levels_of(
    config: Config, grid: Grid | None, row: int | None, timesteps: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) [B, 1, ..] of timesteps [B], to multiply tensors like `like` with.

    That of node `row` if that is given; else that of each timestep in the nodes of the run, or, for
    one that is none of them and without a run, in training. In float32 at least.
    """
    labels = timesteps.detach().reshape(-1).double().cpu().numpy()
    levels = np.stack(training_levels(config, labels))
    if grid is not None:
        nodes = np.stack([grid.alpha, grid.sigma])
        found, places = lookup(grid, labels)
        levels = np.where(found, nodes[:, places], levels)
        if row is not None:
            levels = np.repeat(nodes[:, [row]], len(labels), axis=1)
    dtype = like.dtype if like.dtype in WIDE else torch.float32
    shape = (2, -1, *[1] * (like.ndim - 1))
    alpha, sigma = torch.from_numpy(levels).to(like.device, dtype).reshape(shape)
    return alpha, sigma
