"""A contestant whose answer is known: images of a Gaussian law with one mean per class."""

from __future__ import annotations

import numpy as np
import torch
from fewstep import samplers
from fewstep.eval.bench import BenchConfig, contestant
from fewstep.eval.extractors import Extractor
from fewstep.eval.images import dequantise, quantise
from fewstep.eval.models import NetworkModel
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import collect_statistics
from fewstep.schedules import VPDiscrete, betas
from torch import Tensor, nn

SCHEDULE = VPDiscrete(betas())
SPREAD = 0.3
SHAPE = (1, 4, 4)
CLASSES = 3


class ExactNoise(nn.Module):
    """eps = sigma (x - alpha mu) / (alpha^2 s^2 + sigma^2), the noise that N(mu, s^2) implies.

    Label 3 is "no class", at the mean of all.
    """

    def __init__(self, spread: float = SPREAD) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor([-0.8, 0.0, 0.8, 0.0]), requires_grad=False)
        self.spread = nn.Parameter(torch.tensor(spread), requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor) -> Tensor:
        self.calls += 1
        time = label[0].item()
        alpha, sigma = float(SCHEDULE.alpha(time)), float(SCHEDULE.sigma(time))
        mean = self.means[class_labels].view(-1, 1, 1, 1)
        return sigma * (x - alpha * mean) / (alpha**2 * self.spread**2 + sigma**2)


class Rows(nn.Module):
    """Four features: the means of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.unit * images.mean(-1).flatten(1)


def model(spread: float = SPREAD, network: nn.Module | None = None) -> NetworkModel:
    network = ExactNoise(spread) if network is None else network

    def denoiser(labels: Tensor | None, size: int) -> samplers.Denoiser:
        free = torch.full((size,), CLASSES)
        return samplers.denoiser(
            network, SCHEDULE, "eps", class_labels=free if labels is None else labels
        )

    return NetworkModel("gaussian", network, SCHEDULE, SHAPE, CLASSES, denoiser)


def rows() -> Extractor:
    return Extractor("rows-4", Rows(), dequantise, {"layer": "means"}, channels=1)


def data() -> Tensor:
    generator = torch.Generator().manual_seed(9)
    means = torch.tensor([-0.8, 0.0, 0.8])[torch.arange(600) % 3].view(-1, 1, 1, 1)
    return quantise(means + SPREAD * torch.randn(600, *SHAPE, generator=generator))


def ready(given: NetworkModel | None = None, metrics=("frechet",), members: int = 10_000):
    """What `prepare` would give."""
    extractor = rows()
    statistics = collect_statistics(in_memory("gauss", data()), extractor, members=members)
    return contestant("gaussian", given or model(), [(extractor, statistics)], tuple(metrics))


def config(**changes) -> BenchConfig:
    """A run of a second."""
    values = {
        "name": "gaussian",
        "models": ["gaussian"],
        "images": 40,
        "batch_size": 15,
        "shard_size": 20,
        "solvers": ["ddim", "dpmpp-2m", "heun"],
        "nfe": [8, 4, 16],
        "spacings": ["lam"],
        "reference": {"steps": 120, "check_images": 6},
    }
    return BenchConfig.model_validate(values | changes)


def endpoint(x: np.ndarray, mean: float, grid) -> np.ndarray:
    """Where the exact ODE takes x from node 0: the same quantile of the law of the data."""
    alpha, sigma = grid.alpha[0], grid.sigma[0]
    return mean + SPREAD * (x - alpha * mean) / np.sqrt(alpha**2 * SPREAD**2 + sigma**2)
