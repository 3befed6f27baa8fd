"""How far the samples of a table end from a teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..samplers import Tableau, sample
from ..samplers.fit import Trajectories


@torch.no_grad()
def distance(batches: Sequence[Trajectories], table: Tableau) -> float:
    """The root mean square between the samples of a table and the teacher's."""
    squares = [
        (sample(each.denoiser, table, started(each, table)) - each.states[-1])
        .double()
        .square()
        .flatten()
        for each in batches
    ]
    return float(torch.cat(squares).mean().sqrt())


def started(batch: Trajectories, table: Tableau) -> Tensor:
    """The noise of a batch at the first node of a table."""
    return batch.z * float(table.grid.sigma[0])
