"""What counts of the distance between a table's samples and a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers import Tableau, sample
from ..samplers.fit import Trajectories


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean of sqrt(r^2 + eps^2) over all numbers r of outputs(x) - outputs(x*).

    `eps` says how large errors count as they are, and smaller ones by their squares; None: all by
    their squares, which gives the least RMSE, and pale pictures: the mean of what may come out
    lifts a background a little everywhere, which distances between sets notice. `features` are
    joined to the pixels with `weight` times their power.
    """

    eps: float | None = 0.03
    features: Callable[[Tensor], Tensor] | None = None
    weight: float = 0.2

    def outputs(self, x: Tensor) -> Tensor:
        """What is compared of a state [B, ...]: float64 [B, K]."""
        pixels = x.flatten(1)
        if self.features is None:
            return pixels.double()
        found = self.features(x).flatten(1)
        # As many features as pixels would weigh the same.
        factor = self.weight * (pixels.shape[1] / found.shape[1]) ** 0.5
        return torch.cat([pixels.double(), factor * found.double()], 1)

    def cost(self, gap: Tensor) -> Tensor:
        """The cost of each residual."""
        square = gap.square()
        return square if self.eps is None else (square + self.eps**2).sqrt()

    def slope(self, gap: Tensor) -> Tensor:
        """The weight with which its square has the same gradient (iterated least squares)."""
        return torch.ones_like(gap) if self.eps is None else 1 / self.cost(gap)

    @torch.no_grad()
    def loss(self, batches: Sequence[Trajectories], table: Tableau) -> float:
        """The mean cost of a table's last states."""
        costs = [
            self.cost(
                self.outputs(sample(each.denoiser, table, each.start(table.grid)))
                - self.outputs(each.states[-1])
            ).flatten()
            for each in batches
        ]
        return float(torch.cat(costs).mean())


# The mean square of the pixels.
SQUARES = Objective(eps=None)


def distance(batches: Sequence[Trajectories], table: Tableau) -> float:
    """The root mean square between the samples of a table and the teacher's."""
    return SQUARES.loss(batches, table) ** 0.5
