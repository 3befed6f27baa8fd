"""A model whose samples are known, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fewstep import samplers
from fewstep.eval.extractors import Extractor
from fewstep.eval.job import Job
from fewstep.eval.models import Draw, Model, NetworkModel, label_rule
from fewstep.eval.settings import SolverConfig, table_within
from fewstep.schedules import VPDiscrete, betas
from torch import Tensor, nn

SCHEDULE = VPDiscrete(betas())
SPREAD, CLASSES, SHAPE = 0.4, 3, (3, 4, 4)


class ExactNoise(nn.Module):
    """eps = sigma (x - alpha mu) / (alpha^2 s^2 + sigma^2), the noise that N(mu, s^2) implies.

    One mean per class; label 3 is "no class".
    """

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-0.8, 0.0, 0.8, 0.1]))

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor) -> Tensor:
        time = label[0].item()
        alpha, sigma = float(SCHEDULE.alpha(time)), float(SCHEDULE.sigma(time))
        mean = self.means[class_labels].view(-1, 1, 1, 1)
        return sigma * (x - alpha * mean) / (alpha**2 * SPREAD**2 + sigma**2)


class CurvedNoise(ExactNoise):
    """Of no law that is linear in x."""

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor) -> Tensor:
        return 1.5 * torch.tanh(super().forward(x, label, class_labels))


def exact(classes: int | None = CLASSES, network: nn.Module | None = None) -> NetworkModel:
    network = (ExactNoise() if network is None else network).requires_grad_(False)

    def denoiser(labels: Tensor | None, size: int) -> samplers.Denoiser:
        given = torch.full((size,), CLASSES) if labels is None else labels
        return samplers.denoiser(network, SCHEDULE, "eps", class_labels=given)

    return NetworkModel("exact", network, SCHEDULE, SHAPE, classes, denoiser)


@dataclass
class Altered:
    """`model`, whose images `act(images, draw)` changes, or which fails there."""

    model: Model
    act: Callable[[Tensor, Draw], Tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def images(self, table: samplers.Tableau, draw: Draw) -> Tensor:
        return self.act(self.model.images(table, draw), draw)


def spoilt(*seeds: int) -> Altered:
    """NaN for these seeds."""

    def act(images: Tensor, draw: Draw) -> Tensor:
        bad = torch.tensor([seed in seeds for seed in draw.seeds]).view(-1, 1, 1, 1)
        return images.masked_fill(bad, float("nan"))

    return Altered(exact(), act)


def counted() -> tuple[Altered, list[int]]:
    """A model, and the seeds that it has made so far."""
    seeds: list[int] = []

    def act(images: Tensor, draw: Draw) -> Tensor:
        seeds.extend(draw.seeds)
        return images

    return Altered(exact(), act), seeds


class Means(nn.Module):
    """Three features: the means of the channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def means(version: str = "1", network: nn.Module | None = None) -> Extractor:
    return Extractor("means", network or Means(), Tensor.float, {"version": version})


def table(nfe: int = 4, solver: str = "dpmpp-2m") -> samplers.Tableau:
    return table_within(SCHEDULE, SolverConfig(name=solver), nfe, "lam", "zero")


def job(count: int = 20, model: Model | None = None, **options: Any) -> Job:
    """`count` images in shards of 8, batches of 3."""
    seeds = range(count)
    labels = label_rule("balanced", CLASSES, SHAPE, seeds, "cpu")
    draw = options.pop("draw", Draw(seeds, labels))
    values = {"extractors": (means(),), "batch_size": 3, "shard_size": 8, "preview": 5}
    return Job(model or exact(), table(), draw, **{**values, **options})
