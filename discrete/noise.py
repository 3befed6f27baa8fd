"""Laws of the total noise: how much of the clean sequence time t has replaced."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

Time = float | Tensor


def double(value: Time) -> Tensor:
    """A float64 tensor; gradients pass."""
    return torch.as_tensor(value, dtype=torch.float64)


def log_expm1(total: Tensor) -> Tensor:
    """log(e^total - 1) for total > 0, accurate at both ends."""
    return total + torch.log(-torch.expm1(-total))


@dataclass(frozen=True, slots=True)
class LogLinear:
    """e^-total(t) = 1 - (1 - eps) t: a token is kept with a probability linear in time.

    Lou et al. 2024, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution"
    (SEDD), section 5.1. All methods take and give float64 tensors, differentiable.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"LogLinear: eps must be between 0 and 1, got {self.eps}")

    def total(self, time: Time) -> Tensor:
        """-log(1 - (1 - eps) t)."""
        return -torch.log1p(-(1 - self.eps) * double(time))

    def rate(self, time: Time) -> Tensor:
        """The derivative of `total` in time, (1 - eps) / (1 - (1 - eps) t)."""
        return (1 - self.eps) / (1 - (1 - self.eps) * double(time))

    def time(self, total: Time) -> Tensor:
        """The inverse of `total`."""
        return -torch.expm1(-double(total)) / (1 - self.eps)


@dataclass(frozen=True, slots=True)
class Geometric:
    """total(t) = low^(1 - t) high^t (SEDD, section 5.1). Methods as those of `LogLinear`."""

    low: float = 1e-4
    high: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"Geometric: need 0 < low < high, got {self.low} and {self.high}")

    @property
    def span(self) -> float:
        """log(high / low)."""
        return math.log(self.high / self.low)

    def total(self, time: Time) -> Tensor:
        """low (high / low)^t."""
        return self.low * torch.exp(self.span * double(time))

    def rate(self, time: Time) -> Tensor:
        """The derivative of `total` in time, log(high / low) total(t)."""
        return self.span * self.total(time)

    def time(self, total: Time) -> Tensor:
        """The inverse of `total`."""
        return torch.log(double(total) / self.low) / self.span


Noise = LogLinear | Geometric
NOISES: dict[str, type[LogLinear] | type[Geometric]] = {
    "log-linear": LogLinear,
    "geometric": Geometric,
}


def to_dict(noise: Noise) -> dict[str, Any]:
    """A law as JSON values: its name and its numbers."""
    name = next(name for name, kind in NOISES.items() if type(noise) is kind)
    return {"name": name, **asdict(noise)}
