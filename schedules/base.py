"""What a noise schedule is: a law lam(t), its inverse, and the form of (alpha, sigma)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# float64 arrays; numpy types the results of most of its functions no more closely than this.
Float = NDArray[np.floating[Any]]
Form = Literal["vp", "edm", "flow"]


def softplus(x: Float) -> Float:
    """log(1 + e^x) without overflow; exact at +-inf."""
    return np.logaddexp(0.0, x)


def alpha_sigma(lam: ArrayLike, form: Form) -> tuple[Float, Float]:
    """Split the half log-SNR lam = log(alpha / sigma) into (alpha, sigma), float64.

    vp: alpha^2 + sigma^2 = 1;  flow: alpha + sigma = 1;  edm: alpha = 1. Exact at lam = +inf
    (clean data) and, for vp and flow, at lam = -inf (pure noise).
    """
    lam = np.asarray(lam, dtype=np.float64)
    match form:
        case "vp":
            return np.exp(-0.5 * softplus(-2 * lam)), np.exp(-0.5 * softplus(2 * lam))
        case "flow":
            return np.exp(-softplus(-lam)), np.exp(-softplus(lam))
        case "edm":
            return np.ones_like(lam), np.exp(-lam)
    raise ValueError(f"form must be 'vp', 'edm' or 'flow', not {form!r}")


class Schedule(ABC):
    """The law x_t = alpha(t) x0 + sigma(t) eps; a kind of schedule gives `lam` and `time` only.

    All methods take and return float64 arrays of any shape. Sampling runs from `t_max` (noise)
    to `t_min` (the smallest noise level that is not zero); `t_zero` is the time of clean data.
    """

    form: ClassVar[Form]

    @property
    def t_max(self) -> float:
        """The time of the most noise; 1 unless the kind says otherwise."""
        return 1.0

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The time of the least noise that a network of this schedule is asked at."""

    @property
    def t_zero(self) -> float:
        """The time of clean data, where sigma is zero; 0 unless the kind says otherwise."""
        return 0.0

    @property
    def knots(self) -> Float:
        """Times where lam(t) is not smooth, rising; none for a law in closed form."""
        return np.empty(0)

    @abstractmethod
    def lam(self, t: ArrayLike) -> Float:
        """Half log-SNR log(alpha / sigma), decreasing in t; +inf on clean data."""

    @abstractmethod
    def time(self, lam: ArrayLike) -> Float:
        """Exact inverse of `lam`."""

    @abstractmethod
    def label(self, t: ArrayLike) -> Float:
        """What a network trained on this schedule is told at time t, rising with t."""

    @abstractmethod
    def time_of(self, label: ArrayLike) -> Float:
        """Exact inverse of `label`."""

    def alpha(self, t: ArrayLike) -> Float:
        """Signal scale alpha(t)."""
        return alpha_sigma(self.lam(t), self.form)[0]

    def sigma(self, t: ArrayLike) -> Float:
        """Noise scale sigma(t)."""
        return alpha_sigma(self.lam(t), self.form)[1]

    def nsr(self, t: ArrayLike) -> Float:
        """Noise-to-signal ratio sigma(t) / alpha(t)."""
        return np.exp(-self.lam(t))


def as_times(t: ArrayLike, low: float, high: float, who: str) -> Float:
    """Return t as float64 in [low, high]; raises ValueError naming a value outside.

    A few units of rounding outside are clipped: `time` of `lam` of an end may land there.
    """
    times = np.asarray(t, dtype=np.float64)
    rounding = 8 * np.finfo(np.float64).eps
    below, above = low - rounding * max(abs(low), 1.0), high + rounding * abs(high)
    # NaN fails both comparisons and is reported like any other bad value.
    bad = ~((times >= below) & (times <= above))
    if bad.any():
        raise ValueError(f"{who}: time {times[bad].flat[0]} is outside [{low}, {high}]")
    return times.clip(low, high)


def check_t_min(t_min: float, who: str) -> None:
    """Raise ValueError unless 0 < t_min <= 1: at 0 there is no noise to remove."""
    if not 0 < t_min <= 1:
        raise ValueError(f"{who} needs 0 < t_min <= 1, not {t_min}")
