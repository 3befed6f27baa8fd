"""What turns a network F into a denoiser D: D(x, sigma) = skip x + out F(in x, label)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """The four functions of sigma of Karras et al. 2022, eq. 7, each of the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    label: Tensor


@dataclass(frozen=True)
class EDM:
    """Unit variance of the network's input and target (Karras et al. 2022, table 1, "Ours").

    skip = d^2 / (sigma^2 + d^2), out = sigma d / sqrt(sigma^2 + d^2), in = 1 / sqrt(sigma^2 + d^2),
    label = ln(sigma) / 4, with d = sigma_data. `sigma_max` None is no limit.
    """

    kind: ClassVar[str] = "edm"
    sigma_min: float = 0.0
    sigma_max: float | None = None
    sigma_data: float = 0.5

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at sigma > 0."""
        data = self.sigma_data
        total = sigma.square() + data**2
        return Coefficients(
            data**2 / total, sigma * data / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4
        )


@dataclass(frozen=True)
class VP:
    """A network of eps, conditioned on time (Song et al. 2021; Karras et al. 2022, table 1, "VP").

    skip = 1, out = -sigma, in = 1 / sqrt(sigma^2 + 1), label = (steps - 1) t(sigma), where t solves
    sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1. `epsilon_t` is the smallest t of the training.
    """

    kind: ClassVar[str] = "vp"
    beta_d: float = 19.9
    beta_min: float = 0.1
    steps: int = 1000
    epsilon_t: float = 1e-5

    @property
    def sigma_min(self) -> float:
        """sigma(epsilon_t)."""
        return self.sigma(self.epsilon_t)

    @property
    def sigma_max(self) -> float:
        """sigma(1)."""
        return self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """The noise level at time t."""
        return math.sqrt(math.expm1((self.beta_d * t / 2 + self.beta_min) * t))

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at sigma >= 0."""
        power = sigma.square() + 1
        # log1p would be more exact, but the networks were trained on labels in this rounding.
        t = ((self.beta_min**2 + 2 * self.beta_d * power.log()).sqrt() - self.beta_min) / (
            self.beta_d
        )
        return Coefficients(torch.ones_like(sigma), -sigma, power.rsqrt(), (self.steps - 1) * t)


@dataclass(frozen=True)
class VE:
    """A network of -eps, conditioned on ln(sigma / 2) (Song et al. 2021; Karras et al. 2022).

    skip = 1, out = sigma, in = 1 (table 1, "VE").
    """

    kind: ClassVar[str] = "ve"
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at sigma > 0."""
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (sigma / 2).log())


@dataclass(frozen=True)
class IDDPM:
    """A network of eps at discrete levels (Nichol and Dhariwal 2021; Karras et al. 2022, eq. 189).

    As `VP`, with label = M - 1 - j where levels[j] is nearest to sigma. `levels` are the M + 1
    noise levels from the highest to 0, as `iddpm_levels` makes them.
    """

    kind: ClassVar[str] = "iddpm"
    levels: tuple[float, ...]

    @property
    def sigma_min(self) -> float:
        """The lowest level above 0."""
        return self.levels[-2]

    @property
    def sigma_max(self) -> float:
        """The highest level."""
        return self.levels[0]

    def __call__(self, sigma: Tensor) -> Coefficients:
        """Coefficients at sigma >= 0; the label is that of the nearest level."""
        levels = torch.tensor(self.levels, dtype=sigma.dtype, device=sigma.device)
        nearest = (sigma[:, None] - levels).abs().argmin(1)
        label = (len(levels) - 2 - nearest).to(sigma.dtype)
        return Coefficients(torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), label)


def iddpm_levels(steps: int, least_ratio: float, offset: float) -> tuple[float, ...]:
    """The noise levels of a cosine schedule, from the highest to 0 (Karras et al. 2022, eq. 190).

    u[M] = 0 and u[j-1]^2 = (u[j]^2 + 1) / max(a[j-1] / a[j], least_ratio) - 1, with
    a[j] = sin^2(pi j / (2 M (offset + 1))), M = `steps`.
    """
    a = [math.sin(math.pi / 2 * j / (steps * (offset + 1))) ** 2 for j in range(steps + 1)]
    power = [1.0]
    for j in range(steps, 0, -1):
        power.append(power[-1] / max(a[j - 1] / a[j], least_ratio))
    return tuple(math.sqrt(each - 1) for each in reversed(power))


Preconditioning = EDM | VP | VE | IDDPM
KINDS: dict[str, Callable[..., Preconditioning]] = {
    each.kind: each for each in (EDM, VP, VE, IDDPM)
}


def preconditioning(kind: str, **options: Any) -> Preconditioning:
    """The preconditioning of a kind, from plain data; ValueError for an unknown kind or option."""
    if kind not in KINDS:
        raise ValueError(f"preconditioning must be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        return KINDS[kind](
            **{k: tuple(x) if isinstance(x, list) else x for k, x in options.items()}
        )
    except TypeError as error:
        raise ValueError(f"options of preconditioning {kind}: {error}") from error
