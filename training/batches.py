"""Which samples a step is about."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffled(total: int, size: int, seed: int, step: int) -> Tensor:
    """The samples of a step: `size` of `total`, all once before any twice, int64."""
    found: list[Tensor] = []
    first, last = step * size, (step + 1) * size
    for epoch in range(first // total, (last - 1) // total + 1):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(total, generator=generator)
        found.append(order[max(first - epoch * total, 0) : last - epoch * total])
    return torch.cat(found)


def share(size: int, part: int, parts: int, least: int = 1) -> slice:
    """The places of a part in a batch of `size`; ValueError if parts would differ in size.

    `least` is how many samples a loss needs.
    """
    if size % parts or size < least * parts:
        raise ValueError(
            f"a batch of {size} cannot be divided into {parts} equal parts of at least {least} "
            "(processes x gradient_accumulation_steps)"
        )
    return slice(part, None, parts)
