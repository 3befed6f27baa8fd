"""Samples in batches, one random stream per sample, with the network calls counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import samplers
from ..schedules.grid import Node
from .subject import Subject


@dataclass(frozen=True, eq=False)
class Draw:
    """Which samples: one seed and one label each, how many at a time, how strongly guided."""

    seeds: range
    labels: Tensor
    batch_size: int = 100
    guidance: float = 1.0

    def first(self, count: int) -> Draw:
        """The first `count` of them."""
        return Draw(self.seeds[:count], self.labels[:count], self.batch_size, self.guidance)


def balanced(
    count: int, classes: int, seed: int = 0, batch_size: int = 100, guidance: float = 1.0
) -> Draw:
    """Seeds from `seed` on, and labels 0, 1, .., classes - 1, 0, 1, .."""
    labels = torch.arange(count) % classes
    return Draw(range(seed, seed + count), labels, batch_size, guidance)


def counted(denoiser: samplers.Denoiser, on_call: Callable[[int], None]) -> samplers.Denoiser:
    """The same denoiser, which reports the batch size of each call."""

    def call(x: Tensor, node: Node) -> Tensor:
        x0 = denoiser(x, node)
        on_call(len(x))
        return x0

    return call


@torch.no_grad()
def generate(
    subject: Subject,
    table: samplers.Tableau,
    draw: Draw,
    on_call: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Run `table` on the seeds and labels of `draw`; float32 [N, C, H, W] on the CPU, unclipped.

    The same seed and label give the same sample in any batch. After every call of the denoiser
    `on_call(images)` is told the size of its batch.
    """
    results = []
    for first in range(0, len(draw.seeds), draw.batch_size):
        part = slice(first, first + draw.batch_size)
        denoiser = counted(subject.denoiser(draw.labels[part], draw.guidance), on_call)
        seeds = draw.seeds[part]
        start = samplers.noise(table.grid, subject.shape, seeds=seeds).to(subject.device)
        results.append(samplers.sample(denoiser, table, start, seeds=seeds).cpu())
    return torch.cat(results)
