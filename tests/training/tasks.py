"""A training small enough to know: y = 3 x - 1 with dropout."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from fewstep.training import Task, TrainingSettings
from torch import Tensor, nn

SIZE = 8


def network(dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 8), nn.Dropout(dropout), nn.Linear(8, 1))


def batch(step: int, part: int, parts: int, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """A part of the samples of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 1, generator=generator)[part::parts]
    return x, 3 * x - 1


def task(dropout: float = 0.5, **options: Any) -> Task:
    def loss(module: nn.Module, step: int, part: int, parts: int) -> Tensor:
        x, y = batch(step, part, parts)
        return (module(x) - y).square().mean()

    def validate(module: nn.Module) -> dict[str, float]:
        x, y = batch(10_000, 0, 1, 100)
        return {"rmse": float((module(x) - y).square().mean().sqrt())}

    options = {"validate": validate, **options}
    return Task(network(dropout), loss, **options)


def settings(**changes: Any) -> TrainingSettings:
    values = {"max_train_steps": 12, "validation_steps": 4, "checkpointing_steps": 5}
    return TrainingSettings(**values | changes)


def alone() -> Accelerator:
    return Accelerator(cpu=True)


def weights(module: nn.Module) -> list[float]:
    return torch.cat([each.detach().flatten() for each in module.parameters()]).tolist()
