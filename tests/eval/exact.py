"""What the tests of this folder share: a model whose samples are known, and small extractors."""

from __future__ import annotations

import numpy as np
import torch
from fewstep import samplers
from fewstep.eval.extractors import Extractor, Outputs
from fewstep.eval.models.model import NetworkModel
from fewstep.schedules import VPDiscrete, betas
from torch import Tensor, nn

SCHEDULE = VPDiscrete(betas())
# Pixels of the data are independent, N(MEAN, SPREAD^2).
MEAN, SPREAD = 0.2, 0.3
SHAPE = (1, 8, 8)


class ExactNoise(nn.Module):
    """eps = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2), the noise that N(m, s^2) implies."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN), requires_grad=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (float(f(time[0].item())) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        return sigma * (x - alpha * self.mean) / (alpha**2 * SPREAD**2 + sigma**2)


def gaussian_model() -> NetworkModel:
    """The exact model of the data."""
    network = ExactNoise()

    def denoiser(labels, size):
        return samplers.denoiser(network, SCHEDULE, "eps")

    return NetworkModel("gaussian", network, SCHEDULE, SHAPE, None, denoiser)


class Means(nn.Module):
    """Features [N, 4]: the means of four bands of rows; logits and a spatial map if wanted."""

    def __init__(self, more: bool):
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Outputs | Tensor:
        bands = torch.stack([each.flatten(1).mean(1) for each in x.tensor_split(4, 2)], 1)
        return Outputs(bands, 50 * bands, x[:, 0, :2, :3].flatten(1)) if self.more else bands


def bands(more: bool = True, **facts: str) -> Extractor:
    """An extractor of gray images of any size."""
    return Extractor("bands", Means(more), torch.Tensor.float, {"layer": "bands", **facts}, 1)


def random_pixels(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> np.ndarray:
    """Noise as images, uint8 [count, size, size, channels]."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
