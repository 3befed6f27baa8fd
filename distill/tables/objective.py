"""What counts of the distance between a table's samples and a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...samplers import Tableau, sample
from ...samplers.blend import mixed
from ...samplers.fit import Trajectories

Kind = Literal["l2", "l1", "log"]


class Outputs(NamedTuple):
    """What is compared of some samples: of each, [B, K], and means over all, [M]; float64."""

    each: Tensor
    means: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """What the residuals r = outputs(x) - outputs(x*) cost: those of each sample, and of the means.

    `kind` is the cost of a residual of each, whose mean counts:

    - "l2", r^2: the least RMSE, and pale pictures, because the mean of what may come out lifts a
      background a little everywhere, which distances between sets notice;
    - "l1", sqrt(r^2 + eps^2): large errors count as they are, those below `eps` by their squares;
    - "log", log(mean_k r^2 + eps^2) of each sample: the PSNR of Shaul et al. 2024, "Bespoke
      Non-Stationary Solvers", with errors below `eps` counting for no more.

    `features` are joined to the pixels, `weight` times as strong in the root mean square if both
    deviate alike. With a `likeness`, as many times the squared distance of the means of `moments`
    of features is added, from those of the teacher's samples, or from `goal` [M]: errors that all
    samples share cost more than those that cancel. By `FrechetCoordinates` that is the Frechet
    distance between the two sets.
    """

    kind: Kind = "l1"
    eps: float = 0.03
    features: Callable[[Tensor], Tensor] | None = None
    weight: float = 0.4
    moments: Callable[[Tensor], Tensor] | None = None
    goal: Tensor | None = None
    likeness: float = 0.0

    def outputs(self, x: Tensor) -> Outputs:
        """What is compared of a state [B, ...]."""
        pixels = x.flatten(1).double()
        if self.features is None:
            return Outputs(pixels, pixels.new_zeros(0))
        found = self.features(x).flatten(1).double()
        # As many features as pixels would weigh the same.
        factor = self.weight * (pixels.shape[1] / found.shape[1]) ** 0.5
        means = found[0, :0] if self.moments is None else self.moments(found).mean(0)
        return Outputs(torch.cat([pixels, factor * found], 1), means)

    def wanted(self, ends: Tensor) -> Outputs:
        """What samples are compared with, where the teacher of the same noises ends at `ends`."""
        found = self.outputs(ends)
        return found if self.goal is None else found._replace(means=self.goal)

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
        """Weights [B, K] whose sum of squares has K / 2 times the gradient of the costs' means."""
        match self.kind:
            case "l2":
                return torch.ones_like(gap)
            case "l1":
                return 0.5 / self.cost(gap)
            case "log":
                return (-self.cost(gap)).exp().expand_as(gap)

    def costs(self, x: Tensor, ends: Tensor) -> Tensor:
        """The mean cost of each last state beside the teacher's, float64 [B], with its gradient."""
        return self.cost(self.outputs(x).each - self.outputs(ends).each).mean(1)

    def loss(self, batches: Sequence[Trajectories], tables: Tableau | Sequence[Tableau]) -> float:
        """What the last states of a table cost, or of several with the batches' shares."""
        return self.compare(batches, ends(batches, tables)).loss

    @torch.no_grad()
    def compare(self, batches: Sequence[Trajectories], found: Sequence[Tensor]) -> Compared:
        """What last states cost, those of each batch beside the teacher's, and why."""
        total = sum(len(batch.z) for batch in batches)
        cost, gaps = 0.0, []
        for batch, x in zip(batches, found, strict=True):
            truth, own = self.wanted(batch.states[-1]), self.outputs(x)
            cost += float(self.cost(truth.each - own.each).mean(1).sum())
            gaps.append(truth.means - own.means)
        sets = over_sets(batches, gaps)
        apart = sum(each.samples * float(each.mean.square().sum()) for each in sets.values())
        return Compared((cost + self.likeness * apart) / total, sets)


class SetMean(NamedTuple):
    """A mean over the samples of a set, and how many they are."""

    samples: int
    mean: Tensor


Sets = Mapping[tuple[float, ...], SetMean]


class Compared(NamedTuple):
    """The loss of samples, and how far the means of sets, those of equal shares, are off."""

    loss: float
    gaps: Sets


def over_sets(batches: Sequence[Trajectories], means: Sequence[Tensor]) -> Sets:
    """Means over all batches with the same shares, by their shares, from a mean over each."""
    found: dict[tuple[float, ...], SetMean] = {}
    for batch, mean in zip(batches, means, strict=True):
        size = len(batch.z)
        known = found.get(batch.shares, SetMean(0, mean))
        count = known.samples + size
        found[batch.shares] = SetMean(count, known.mean + (mean - known.mean) * (size / count))
    return found


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
