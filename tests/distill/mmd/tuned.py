"""Networks small enough to know, to be trained for the samples of a table."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from fewstep import samplers
from fewstep.distill.mmd.discrepancy import Space, kernel
from fewstep.distill.mmd.task import mmd_task
from fewstep.distill.tables.descent import checkpointed
from fewstep.schedules import VPLinear, grid
from fewstep.training import Task, TrainingSettings
from torch import Tensor, nn

LAW = VPLinear()
BLOCK = 600


def even(count: int, generator: torch.Generator) -> Tensor:
    """Quantiles of N(0, 1) in any order, [count, 1]: the moments of a few are those of the law."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(u)[torch.randperm(count, generator=generator)][:, None]


NOISE = torch.randn(2**17, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Affine(nn.Module):
    """The exact eps of N(0, 1) data, with a gain and an offset to learn, and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.bend = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        # x has unit variance at all times, so eps = sigma x.
        sigma = torch.as_tensor(LAW.sigma(label[0].item() / 1000)).to(x)
        drift = self.offset + self.bend * torch.tanh(x)
        return self.gain * sigma * x + self.dropout(drift.expand_as(x))


@cache
def table(steps: int) -> samplers.Tableau:
    return samplers.build("ddim", grid(LAW, steps, "quadratic"))


def images_of(network: nn.Module, steps: int, calls: bool = False) -> Any:
    found: Any = samplers.denoiser(network, LAW, "eps")
    denoiser = checkpointed(found) if calls else found

    def images(numbers: Any) -> Tensor:
        rows = torch.tensor(list(numbers)) % len(NOISE)
        start = NOISE[rows] * float(table(steps).grid.sigma[0])
        return samplers.sample(denoiser, table(steps), start)

    return images


@cache
def space(name: Any = "cubic", mean: float = 0.0, std: float = 1.0, count: int = 4000) -> Space:
    generator = torch.Generator().manual_seed(5)
    real = mean + std * even(count, generator)
    return Space(name, "", lambda x: x, real, kernel(name, 1))


def task(
    network: nn.Module, *spaces: Space, steps: int = 5, calls: bool = False, **more: Any
) -> Task:
    images = images_of(network, steps, calls)
    given = {"batch_size": 16, "accelerator": Accelerator(cpu=True), **more}
    return mmd_task(network, images, spaces or (space(mean=0.5),), **given)


def settings(**changes: Any) -> TrainingSettings:
    values = {"max_train_steps": 5, "learning_rate": 0.05, "lr_scheduler": "constant"}
    return TrainingSettings(**values | changes)
