"""How far samples are from where the real ones are dense: neighbours, outliers, rarity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .estimate import Estimate
from .neighbours import BORDER, ROWS, of_samples, radii, square_distances
from .stored import StoredFeatures


class Rarity(StoredFeatures):
    """Three measures of how rare samples are among real ones, means over the samples.

    - neighbour_distance: the mean distance to the `k` nearest real features;
    - outlier_factor: how much sparser it is around a sample than around its `outlier_k` real
      neighbours, 1 where it is as dense (Breunig et al. 2000, "LOF: Identifying Density-Based Local
      Outliers");
    - rarity: the least radius of the balls of real features that a sample lies in, which reach to
      their `k`-th neighbours (Han et al. 2023, "Rarity Score"); samples in no ball have none.

    All rise with rarity and with bad quality alike: look at precision beside them. See
    `StoredFeatures` for `reference` and `blocks`.
    """

    higher_is_better = True

    def __init__(
        self, reference: Tensor, k: int = 5, outlier_k: int = 20, blocks: int = 20, **kwargs: Any
    ):
        super().__init__(reference, blocks, **kwargs)
        if min(k, outlier_k) < 1 or max(k, outlier_k) >= len(reference):
            raise ValueError(
                f"k and outlier_k must be 1 to {len(reference) - 1}, not {k} and {outlier_k}"
            )
        self.k, self.outlier_k = k, outlier_k

    def compute(self) -> dict[str, Tensor]:
        """The three values by name, float64 scalars."""
        return {
            name: torch.tensor(each.value, dtype=torch.float64, device=self.device)
            for name, each in self.estimate().items()
        }

    def estimate(self) -> dict[str, Estimate]:
        """The three values with their jackknife over blocks, the reference held fixed.

        Where no sample lies in a ball there is no rarity: it is NaN then, and the others are not.
        """
        with self.synced():
            fake, blocks, real = self.stored()
        centre = real.mean(0)
        real, fake = real - centre, fake - centre
        member = torch.nn.functional.one_hot(blocks, self.blocks).double()
        sizes = member.sum(0)
        least = least_radius(real, fake, self.k)
        inside = least.isfinite()
        balls = torch.where(inside, least, 0) @ member, inside.double() @ member
        return {
            "neighbour_distance": of_samples(
                neighbour_distance(real, fake, self.k) @ member, sizes
            ),
            "outlier_factor": of_samples(
                outlier_factor(real, fake, self.outlier_k) @ member, sizes
            ),
            "rarity": of_samples(*balls),
        }


def neighbour_distance(real: Tensor, fake: Tensor, k: int) -> Tensor:
    """The mean distance of each of `fake` [N, D] to its k nearest of `real` [M, D], [N]."""
    found = [
        square_distances(rows, real).topk(k, dim=1, largest=False).values.sqrt().mean(1)
        for rows in fake.split(ROWS)
    ]
    return torch.cat(found)


def outlier_factor(real: Tensor, fake: Tensor, k: int) -> Tensor:
    """The local outlier factor of each of `fake` among `real`, [N]."""
    # Here, because it takes a second.
    from sklearn.neighbors import LocalOutlierFactor

    judge = LocalOutlierFactor(n_neighbors=k, novelty=True).fit(real.cpu().numpy())
    return torch.from_numpy(-judge.score_samples(fake.cpu().numpy())).to(fake)


def least_radius(real: Tensor, fake: Tensor, k: int) -> Tensor:
    """The least radius of the real k-neighbour balls that each of `fake` lies in, inf for none."""
    (square_radii,) = radii(real, (k,))
    found = []
    for rows in fake.split(ROWS):
        within = square_distances(rows, real) <= (1 + BORDER) * square_radii
        found.append(torch.where(within, square_radii, torch.inf).amin(1).sqrt())
    return torch.cat(found)
