"""Precision, recall, density and coverage: which samples lie among the neighbours of which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import kept
from .estimate import Estimate, jackknife
from .stored import StoredFeatures

ROWS = 1024
# Of |x|^2 + |y|^2 in |x - y|^2, in float64.
ROUNDING = 1e-13
# A border is as wide: the same distance, found in another block of rows, has other last digits.
BORDER = 1e-9


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 [N, M] of x [N, D] and y [M, D]; 0 where they agree to rounding.

    Centre both first: what is left of a difference is relative to the lengths of x and y.
    """
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = lengths - 2 * x @ y.T
    # Otherwise duplicates would lie outside each other's balls, by chance.
    return squares.masked_fill_(squares <= lengths.mul_(ROUNDING), 0.0)


def radii(x: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Squared distance from each x [N, D] to its k-th nearest other, [len(ks), N]."""
    if len(x) <= max(ks):
        raise ValueError(f"{max(ks)} neighbours need more than {max(ks)} samples, not {len(x)}")
    found = []
    for rows in x.split(ROWS):
        # The nearest is x itself, at 0.
        nearest = square_distances(rows, x).topk(max(ks) + 1, dim=1, largest=False).values
        found.append(nearest[:, list(ks)])
    return torch.cat(found).T


class Neighbours(StoredFeatures):
    """Precision, recall, density and coverage of the features that `update` sees.

    With r_k(x) the distance of x to its k-th nearest neighbour in its own set:

    - precision: the share of samples within r_k of some real one; recall: the share of real ones
      within r_k of some sample (Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric"),
      k = `k`, border included;
    - density: the number of real balls around a sample, over k, on average; coverage: the share of
      real balls with a sample inside (Naeem et al. 2020, "Reliable Fidelity and Diversity"),
      k = `density_k`, border excluded.

    Distances are float64. See `StoredFeatures` for `reference` and `blocks`.
    """

    higher_is_better = True

    def __init__(
        self, reference: Tensor, k: int = 3, density_k: int = 5, blocks: int = 20, **kwargs: Any
    ):
        super().__init__(reference, blocks, **kwargs)
        if min(k, density_k) < 1:
            raise ValueError(f"k and density_k must be positive, not {k} and {density_k}")
        self.k, self.density_k = k, density_k

    def compute(self) -> dict[str, Tensor]:
        """The four values by name, float64 scalars."""
        return {
            name: torch.tensor(each.value, dtype=torch.float64, device=self.device)
            for name, each in self.estimate().items()
        }

    def estimate(self) -> dict[str, Estimate]:
        """The four values with their jackknife over blocks, reference and all radii held fixed."""
        with self.synced():
            fake, blocks, real = self.stored()
        centre = real.mean(0)
        real, fake = real - centre, fake - centre
        real_radii, dense_radii = radii(real, (self.k, self.density_k))
        (fake_radii,) = radii(fake, (self.k,))
        member = torch.nn.functional.one_hot(blocks, self.blocks).double()

        inside = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
        dense = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
        recalled, covered = [], []  # by how many samples of each block, [M, K]
        for rows in torch.arange(len(real), device=real.device).split(ROWS):
            square = square_distances(real[rows], fake)
            inside |= (square <= (1 + BORDER) * real_radii[rows, None]).any(0)
            near = (square < (1 - BORDER) * dense_radii[rows, None]).double()
            dense += near.sum(0)
            covered.append(near @ member)
            recalled.append((square <= (1 + BORDER) * fake_radii).double() @ member)

        sizes = member.sum(0)
        return {
            "precision": of_samples(inside.double() @ member, sizes),
            "recall": of_reals(torch.cat(recalled), sizes),
            "density": of_samples(dense @ member / self.density_k, sizes),
            "coverage": of_reals(torch.cat(covered), sizes),
        }


def of_samples(sums: Tensor, sizes: Tensor) -> Estimate:
    """The mean over samples, from its sums [K] over the blocks."""

    def mean(without: int | None) -> float:
        weight = kept(len(sizes), without, sizes)
        return float(weight @ sums / (weight @ sizes))

    return jackknife(mean, sizes.cpu().numpy())


def of_reals(hits: Tensor, sizes: Tensor) -> Estimate:
    """The share of reals with any hit, from the hits [M, K] by the blocks."""

    def share(without: int | None) -> float:
        return float((hits @ kept(len(sizes), without, sizes) > 0).double().mean())

    return jackknife(share, sizes.cpu().numpy())
