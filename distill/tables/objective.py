"""What counts of the distance between a table's samples and a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...samplers import Tableau, sample
from ...samplers.blend import mixed
from ...samplers.fit import Trajectories

Kind = Literal["l2", "l1", "log"]


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean cost of the residuals r = outputs(x) - outputs(x*), [B, K].

    `kind` is

    - "l2", r^2: the least RMSE, and pale pictures, because the mean of what may come out lifts a
      background a little everywhere, which distances between sets notice;
    - "l1", sqrt(r^2 + eps^2): large errors count as they are, those below `eps` by their squares;
    - "log", log(mean_k r^2 + eps^2) of each sample: the PSNR of Shaul et al. 2024, "Bespoke
      Non-Stationary Solvers", with errors below `eps` counting for no more.

    `features` are joined to the pixels, `weight` times as strong in the root mean square if both
    deviate alike.
    """

    kind: Kind = "l1"
    eps: float = 0.03
    features: Callable[[Tensor], Tensor] | None = None
    weight: float = 0.4

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
        """The cost of residuals [B, K], of each one or of each sample."""
        square = gap.square()
        match self.kind:
            case "l2":
                return square
            case "l1":
                return (square + self.eps**2).sqrt()
            case "log":
                return (square.mean(1, keepdim=True) + self.eps**2).log()

    def slope(self, gap: Tensor) -> Tensor:
        """Weights [B, K] whose sum of squares has the direction of the gradient at `gap`."""
        match self.kind:
            case "l2":
                return torch.ones_like(gap)
            case "l1":
                return 1 / self.cost(gap)
            case "log":
                return (-self.cost(gap)).exp().expand_as(gap)

    def costs(self, x: Tensor, ends: Tensor) -> Tensor:
        """The mean cost of each last state, float64 [B], with its gradient."""
        return self.cost(self.outputs(x) - self.outputs(ends)).mean(1)

    def loss(self, batches: Sequence[Trajectories], tables: Tableau | Sequence[Tableau]) -> float:
        """The mean cost of the last states of a table, or of several with the batches' shares."""
        return self.loss_of(batches, ends(batches, tables))

    @torch.no_grad()
    def loss_of(self, batches: Sequence[Trajectories], found: Sequence[Tensor]) -> float:
        """The mean cost of last states, those of each batch beside the teacher's."""
        pairs = zip(batches, found, strict=True)
        costs = torch.stack([self.costs(x, batch.states[-1]).sum() for batch, x in pairs])
        return float(costs.sum()) / sum(len(batch.z) for batch in batches)


@torch.no_grad()
def ends(batches: Sequence[Trajectories], tables: Tableau | Sequence[Tableau]) -> list[Tensor]:
    """The last states of every batch by a table, or by several with the batch's shares."""
    several = [tables] if isinstance(tables, Tableau) else tables
    own = [(each, mixed(several, each.shares)) for each in batches]
    return [sample(each.denoiser, table, each.start(table.grid)) for each, table in own]


# The mean square of the pixels.
SQUARES = Objective("l2")


def distance(batches: Sequence[Trajectories], tables: Tableau | Sequence[Tableau]) -> float:
    """The root mean square between the samples of a table (or several) and the teacher's."""
    return SQUARES.loss(batches, tables) ** 0.5
