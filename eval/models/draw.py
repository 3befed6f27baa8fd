"""Which samples are drawn: seeds, labels, guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ... import samplers

RULES = ("balanced", "random")


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
    rule: str | int, classes: int | None, shape: Sequence[int], seeds: Sequence[int], source: str
) -> Tensor | None:
    """The labels of some seeds, each by its own seed only; None for a model without classes.

    "balanced" is seed mod classes, "random" what EDM's script draws, and a number that class for
    all. Raises ValueError for another rule, or a class that there is not.
    """
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
