"""Which samples are drawn: seeds, labels, guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import samplers

# "balanced", "random", the number of a class, or a share for each class.
LabelRule = str | int | tuple[float, ...]
RULES = ("balanced", "random")
# The golden ratio's fraction in units of 2^-32.
GOLDEN = 2654435769


@dataclass(frozen=True, eq=False)
class Draw:
    """One seed per sample, a label each (int64 [N]; None: no class), and how strongly guided.

    `source` is the device whose generators draw the noise; see `samplers.noise`.
    """

    seeds: Sequence[int]
    labels: Tensor | None = None
    guidance: float = 1.0
    source: str = "cpu"

    def part(self, rows: slice) -> Draw:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, seeds=self.seeds[rows], labels=labels)


def label_rule(
    rule: LabelRule, classes: int | None, shape: Sequence[int], seeds: Sequence[int], source: str
) -> Tensor | None:
    """The labels of some seeds, each by its own seed only; None for a model without classes.

    "balanced" is seed mod classes, "random" what EDM's script draws, a number that class for all,
    and numbers are shares of the classes in units of their own, such as how often they are in the
    data. Raises ValueError for another rule, or a class that there is not.
    """
    if isinstance(rule, tuple):
        return shared_out(rule, classes, seeds)
    number = isinstance(rule, int) and not isinstance(rule, bool)
    if not number and rule not in RULES:
        raise ValueError(f"labels are {', '.join(RULES)} or one number, not {rule!r}")
    if classes is None:
        if number:
            raise ValueError(f"label {rule}: this model has no classes")
        return None
    if rule == "balanced":
        return torch.tensor([seed % classes for seed in seeds], dtype=torch.long)
    if rule == "random":
        return samplers.random_labels(classes, shape, seeds, source)
    if not 0 <= int(rule) < classes:
        raise ValueError(f"label {rule} is not one of 0 to {classes - 1}")
    return torch.full((len(seeds),), int(rule), dtype=torch.long)


def shared_out(shares: tuple[float, ...], classes: int | None, seeds: Sequence[int]) -> Tensor:
    """Labels of which the classes have their shares, among any seeds in a row, int64 [N].

    frac(seed g), with g the golden ratio, is even over [0, 1) at any length (Weyl); class k is the
    part of it that is as long as its share.
    """
    if classes != len(shares) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(
            f"labels {list(shares)} are not shares of {classes or 'no'} classes: one each, none "
            "below 0, not all 0"
        )
    places = torch.tensor([seed * GOLDEN % 2**32 / 2**32 for seed in seeds], dtype=torch.float64)
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    found = torch.searchsorted(ends, places * ends[-1], right=True)
    # Rounding may leave the last place at the very end.
    return found.clamp(max=int(torch.tensor(shares).nonzero().max()))
