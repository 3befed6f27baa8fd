"""Which samples are drawn: seeds, labels, guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import samplers
from ...samplers.streams import uniform
from .extras import NONE, Extras

# "balanced", "random", the number of a class, or a share for each class.
LabelRule = str | int | tuple[float, ...]
RULES = ("balanced", "random")
# Of the stream of a seed, the draw that no sampler gets to.
DRAW = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Draw:
    """One seed per sample, a label each (int64 [N]; None: no class), and how strongly guided.

    `source` is the device whose generators draw the noise; see `samplers.noise`. `extras` are what
    their runs do besides the table.
    """

    seeds: Sequence[int]
    labels: Tensor | None = None
    guidance: float = 1.0
    source: str = "cpu"
    extras: Extras = NONE

    def part(self, rows: slice) -> Draw:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, seeds=self.seeds[rows], labels=labels)


def label_rule(
    rule: LabelRule, classes: int | None, shape: Sequence[int], seeds: Sequence[int], source: str
) -> Tensor | None:
    """The labels of some seeds, each by its own seed only; None for a model without classes.

    "balanced" is seed mod classes, "random" what EDM's script draws, a number that class for all,
    and numbers are shares of the classes, such as how many of each the data have: labels are then
    drawn independently. Raises ValueError for another rule, or a class that there is not.
    """
    if isinstance(rule, tuple):
        return drawn(rule, classes, seeds)
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


def drawn(shares: tuple[float, ...], classes: int | None, seeds: Sequence[int]) -> Tensor:
    """Labels of which the classes have their shares, each drawn by its own seed, int64 [N].

    Raises ValueError for shares that are not of these classes.
    """
    if classes != len(shares) or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(
            f"labels {list(shares)} are not shares of {classes or 'no'} classes: one each, none "
            "below 0, not all 0"
        )
    law = torch.tensor(shares, dtype=torch.float64)
    ends = (law / law.sum()).cumsum(0)
    u = uniform(seeds, DRAW, torch.empty(len(seeds), 1))[:, 0]
    found = torch.searchsorted(ends, u, right=True)
    # The last end may be rounded down.
    return found.clamp(max=int(law.nonzero().max()))
