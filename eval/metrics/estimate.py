"""A number with its uncertainty: what leaving blocks of samples out does to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...schedules.base import Float


class Estimate(NamedTuple):
    """A statistic of n samples in K blocks, and its `replicates` [K] with one block left out each.

    `sizes` [K] are the numbers of samples in the blocks. The delete-block jackknife (Busing, Meijer
    and van der Leeden 1999, "Delete-m jackknife for unequal m") needs no more than that, and holds
    where a bootstrap with replacement fails: repeated samples double the bias of a distance.
    """

    value: float
    replicates: Float
    sizes: Float

    @property
    def pseudo(self) -> Float:
        """The pseudo-values h value - (h - 1) replicate with h = n / size, [K]."""
        h = self.sizes.sum() / self.sizes
        return h * self.value - (h - 1) * self.replicates

    @property
    def corrected(self) -> float:
        """The value without its bias of order 1 / n; NaN with fewer than two blocks."""
        if len(self.sizes) < 2:
            return math.nan
        share = 1 - self.sizes / self.sizes.sum()
        return float(len(self.sizes) * self.value - (share * self.replicates).sum())

    @property
    def error(self) -> float:
        """The standard error; NaN with fewer than two blocks."""
        if len(self.sizes) < 2:
            return math.nan
        h = self.sizes.sum() / self.sizes
        return float(np.sqrt(((self.pseudo - self.corrected) ** 2 / (h - 1)).mean()))

    @property
    def summary(self) -> dict[str, float | None]:
        """`value`, `error` and `corrected` as JSON values: what there is not is None."""
        found = {"value": self.value, "error": self.error, "corrected": self.corrected}
        return {name: each if math.isfinite(each) else None for name, each in found.items()}


def jackknife(statistic: Callable[[int | None], float], sizes: Float) -> Estimate:
    """`statistic` of all, and without each of the blocks that `sizes` [K] does not say are empty.

    `statistic(k)` leaves block k out, `statistic(None)` none. A single block is not left out.
    """
    filled = np.flatnonzero(sizes)
    left_out = filled if len(filled) > 1 else filled[:0]
    replicates = np.array([statistic(int(k)) for k in left_out], dtype=np.float64)
    return Estimate(statistic(None), replicates, np.asarray(sizes, np.float64)[left_out])


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two samplers that were given the same seeds: what they share cancels in the error.

    Raises ValueError if their blocks are not of the same sizes.
    """
    if not np.array_equal(a.sizes, b.sizes):
        raise ValueError(
            f"a paired comparison needs the same samples on both sides, but the blocks have "
            f"{a.sizes.astype(int).tolist()} and {b.sizes.astype(int).tolist()}"
        )
    return Estimate(a.value - b.value, a.replicates - b.replicates, a.sizes)
