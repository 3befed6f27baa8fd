"""A subject whose answer is known: images of a Gaussian law with one mean per class."""

from __future__ import annotations

import numpy as np
import torch
from fewstep.eval import BenchConfig, Subject
from fewstep.schedules import VPDiscrete, betas
from fewstep.zoo import Images
from torch import Tensor, nn

SCHEDULE = VPDiscrete(betas())
SPREAD = 0.3
SHAPE = (1, 4, 4)


class ExactNoise(nn.Module):
    """eps = sigma (x - alpha mu) / (alpha^2 s^2 + sigma^2), the noise that N(mu, s^2) implies."""

    def __init__(self, spread: float = SPREAD) -> None:
        super().__init__()
        self.register_buffer("means", torch.linspace(-0.8, 0.8, 3))
        self.register_buffer("spread", torch.tensor(spread))
        self.calls = 0

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor) -> Tensor:
        self.calls += 1
        time = label[0].item()
        alpha, sigma = float(SCHEDULE.alpha(time)), float(SCHEDULE.sigma(time))
        mean = self.means[class_labels % 3].view(-1, 1, 1, 1)
        return sigma * (x - alpha * mean) / (alpha**2 * self.spread**2 + sigma**2)


class Rows(nn.Module):
    """Four features: the means of the rows."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(()))

    def features(self, images: Tensor) -> Tensor:
        return self.unit * images.mean(-1).flatten(1)


def subject(spread: float = SPREAD) -> Subject:
    """The Gaussian subject."""
    generator = torch.Generator().manual_seed(9)
    labels = torch.arange(600) % 3
    network = ExactNoise(spread)
    images = network.means[labels].view(-1, 1, 1, 1) + SPREAD * torch.randn(
        600, *SHAPE, generator=generator
    )
    return Subject(
        name="gaussian",
        network=network,
        schedule=SCHEDULE,
        prediction="eps",
        shape=SHAPE,
        classes=3,
        data=Images(images.clamp(-1, 1), labels),
        extractor=Rows(),
        extractor_name="rows-4",
        device=torch.device("cpu"),
    )


def config(**changes) -> BenchConfig:
    """A run of a second."""
    values = {
        "name": "gaussian",
        "images": 12,
        "batch_size": 5,
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
