"""The variance-exploding schedule in EDM form: alpha = 1 and sigma is the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import override

from .base import Float, Form, Schedule, as_times


@dataclass(frozen=True)
class EDM(Schedule):
    """x_t = x0 + t eps; the label is c_noise = log(sigma) / 4.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
    `sigma_min` and `sigma_max` bound the grids, not the schedule: any t >= 0 is legal.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    form: ClassVar[Form] = "edm"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < np.inf:
            raise ValueError(
                f"EDM needs 0 < sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}"
            )

    @property
    @override
    def t_max(self) -> float:
        return self.sigma_max

    @property
    @override
    def t_min(self) -> float:
        return self.sigma_min

    @override
    def lam(self, t: ArrayLike) -> Float:
        with np.errstate(divide="ignore"):
            return -np.log(as_times(t, 0, np.inf, "EDM"))

    @override
    def sigma(self, t: ArrayLike) -> Float:
        # As given: the way through lam would round it.
        return as_times(t, 0, np.inf, "EDM")

    @override
    def time(self, lam: ArrayLike) -> Float:
        return np.exp(-np.asarray(lam, dtype=np.float64))

    @override
    def label(self, t: ArrayLike) -> Float:
        return -0.25 * self.lam(t)

    @override
    def time_of(self, label: ArrayLike) -> Float:
        return np.exp(4 * np.asarray(label, dtype=np.float64))
