"""Variance-preserving schedules: alpha^2 + sigma^2 = 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import override

from .base import Float, Form, Schedule, as_times, check_t_min, softplus


def lam_from_log_alpha(log_alpha: Float) -> Float:
    """lam = log alpha - log(1 - alpha^2) / 2 for a variance-preserving law."""
    with np.errstate(divide="ignore"):
        return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))


@dataclass(frozen=True)
class VPLinear(Schedule):
    """Linear beta(t) on t in [0, 1]: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.

    `beta_min` may be a little below zero, as where a law is fitted to given noise levels (see
    `between`); the shortest times, below t_min, are then clean data.

    Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 33. The inverse is closed:
    with q = log(1 + e^(-2 lam)) and d = beta_max - beta_min,
    t = 2 q / (beta_min + sqrt(beta_min^2 + 2 d q)).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    form: ClassVar[Form] = "vp"

    def __post_init__(self) -> None:
        check_t_min(self.t_min, "VPLinear")
        slope = self.beta_max - self.beta_min
        # Noise there must be, and it must grow, from the first time on.
        if slope < 0 or not (self.beta_min > 0 or self.beta_min > -self.t_min * slope / 2):
            raise ValueError(
                f"VPLinear needs noise that grows from t_min on, 0 < beta_min <= beta_max: not "
                f"{self.beta_min}, {self.beta_max}"
            )

    @classmethod
    def between(cls, nsr_min: float, nsr_max: float, t_min: float = 1e-3) -> VPLinear:
        """The law whose sigma / alpha is `nsr_min` at `t_min` and `nsr_max` at 1.

        q(t) = log(1 + nsr^2) = t^2 d / 2 + t beta_min with d = beta_max - beta_min, at both ends.
        Karras et al. 2022 give EDM networks such a time, from 0.002 to 80.
        """
        low, high = np.log1p(nsr_min**2), np.log1p(nsr_max**2)
        slope = 2 * (low / t_min - high) / (t_min - 1)
        beta_min = high - slope / 2
        return cls(float(beta_min), float(beta_min + slope), t_min)

    @override
    def lam(self, t: ArrayLike) -> Float:
        t = as_times(t, 0, 1, "VPLinear")
        log_alpha = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        return lam_from_log_alpha(np.minimum(log_alpha, 0.0))

    @override
    def time(self, lam: ArrayLike) -> Float:
        q = softplus(-2 * np.asarray(lam, dtype=np.float64))
        slope = self.beta_max - self.beta_min
        root = np.sqrt(self.beta_min**2 + 2 * slope * q)
        # The form without cancellation.
        if self.beta_min <= 0:
            return (root - self.beta_min) / slope
        return 2 * q / (self.beta_min + root)

    @override
    def label(self, t: ArrayLike) -> Float:
        """1000 t, the convention of the continuous networks of Song et al."""
        return 1000 * as_times(t, 0, 1, "VPLinear")

    @override
    def time_of(self, label: ArrayLike) -> Float:
        return np.asarray(label, dtype=np.float64) / 1000


@dataclass(frozen=True)
class VPCosine(Schedule):
    """alpha(t) = cos(u) / cos(u0), u = (t + s) / (1 + s) pi / 2, u0 = u at t = 0, on t in [0, 1].

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion", eq. 17, without the discrete cap on
    beta: at t = 1 the signal is exactly zero. sigma^2 cos(u0)^2 = sin(u - u0) sin(u + u0) keeps
    small noise levels exact.
    """

    s: float = 0.008
    t_min: float = 1e-3
    form: ClassVar[Form] = "vp"

    def __post_init__(self) -> None:
        if not self.s >= 0:
            raise ValueError(f"VPCosine needs s >= 0, not {self.s}")
        check_t_min(self.t_min, "VPCosine")

    @property
    def _u0(self) -> float:
        return self.s / (1 + self.s) * np.pi / 2

    @override
    def lam(self, t: ArrayLike) -> Float:
        t = as_times(t, 0, 1, "VPCosine")
        gap = t / (1 + self.s) * np.pi / 2
        # cos(u) as the sine of the distance to pi/2, which is exact where the signal ends.
        cos_u = np.sin((1 - t) / (1 + self.s) * np.pi / 2)
        with np.errstate(divide="ignore"):
            return np.log(cos_u) - 0.5 * np.log(np.sin(gap) * np.sin(gap + 2 * self._u0))

    @override
    def time(self, lam: ArrayLike) -> Float:
        lam = np.asarray(lam, dtype=np.float64)
        sigma, alpha = np.exp(-0.5 * softplus(2 * lam)), np.exp(-0.5 * softplus(-2 * lam))
        cos0, sin0 = np.cos(self._u0), np.sin(self._u0)
        u = np.arctan2(np.hypot(sin0, sigma * cos0), alpha * cos0)
        # u - u0 from sin(u - u0) sin(u + u0) = sigma^2 cos(u0)^2, without cancellation near u0.
        with np.errstate(invalid="ignore"):
            near = np.arcsin(np.minimum((sigma * cos0) ** 2 / np.sin(u + self._u0), 1))
        gap = np.where((u < np.pi / 4) & (self.s > 0), near, u - self._u0)
        return gap * (1 + self.s) * 2 / np.pi

    @override
    def label(self, t: ArrayLike) -> Float:
        """1000 t."""
        return 1000 * as_times(t, 0, 1, "VPCosine")

    @override
    def time_of(self, label: ArrayLike) -> Float:
        return np.asarray(label, dtype=np.float64) / 1000


@dataclass(frozen=True, eq=False)
class VPDiscrete(Schedule):
    """A trained table of N noise levels; time is the timestep index, -1 is clean data.

    Give `betas` (alpha^2 = cumulative product of 1 - beta) or `alphas_cumprod` (= alpha^2).
    Between indices lam is linear; in an interval that ends in lam = +-inf (below index 0, and
    above N - 2 when the terminal SNR is zero) the angle atan(sigma / alpha) is. The label is the
    index, as a float.
    """

    betas: Sequence[float] | Float | None = None
    alphas_cumprod: Sequence[float] | Float | None = None
    form: ClassVar[Form] = "vp"

    def __repr__(self) -> str:
        product = self._alphas_cumprod
        return f"VPDiscrete({len(product)} levels, alpha^2 {product[0]:.6g} to {product[-1]:.6g})"

    def __post_init__(self) -> None:
        if (self.betas is None) == (self.alphas_cumprod is None):
            raise ValueError("VPDiscrete needs either betas or alphas_cumprod, and not both")
        product = self._alphas_cumprod
        if product.ndim != 1 or len(product) < 2:
            raise ValueError(
                f"VPDiscrete needs a 1-D table of 2 levels or more, not shape {product.shape}"
            )
        inside = (product > 0) & (product < 1)
        inside[-1] |= product[-1] == 0
        falling = np.append(True, np.diff(product) < 0)
        if not (inside & falling).all():
            k = int(np.argmin(inside & falling))
            raise ValueError(
                f"VPDiscrete: alphas_cumprod must fall inside (0, 1), only the last may be 0; "
                f"entry {k} is {product[k]}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VPDiscrete) and np.array_equal(
            self._alphas_cumprod, other._alphas_cumprod
        )

    def __hash__(self) -> int:
        return hash(self._alphas_cumprod.tobytes())

    @cached_property
    def _alphas_cumprod(self) -> Float:
        if self.betas is not None:
            return np.cumprod(1 - np.asarray(self.betas, dtype=np.float64))
        return np.array(self.alphas_cumprod, dtype=np.float64)

    @cached_property
    def _lam(self) -> Float:
        """lam at the indices -1 (clean), 0, .., N - 1."""
        product = self._alphas_cumprod
        with np.errstate(divide="ignore"):
            return np.append(np.inf, 0.5 * (np.log(product) - np.log1p(-product)))

    @property
    @override
    def t_max(self) -> float:
        return float(len(self._alphas_cumprod) - 1)

    @property
    @override
    def t_min(self) -> float:
        return 0.0

    @property
    @override
    def t_zero(self) -> float:
        return -1.0

    @property
    @override
    def knots(self) -> Float:
        return np.arange(self.t_max, dtype=np.float64)

    @override
    def lam(self, t: ArrayLike) -> Float:
        t = as_times(t, -1, self.t_max, "VPDiscrete")
        low = np.minimum(np.floor(t), self.t_max - 1).astype(int) + 1
        share, a, b = t + 1 - low, self._lam[low], self._lam[low + 1]
        finite = np.isfinite(a) & np.isfinite(b)
        with np.errstate(invalid="ignore", divide="ignore"):
            angle = (1 - share) * np.arctan(np.exp(-a)) + share * np.arctan(np.exp(-b))
            curved = np.where(share == 1, b, -np.log(np.tan(angle)))
            return np.where(finite, a + share * (b - a), curved)

    @override
    def time(self, lam: ArrayLike) -> Float:
        asked = np.asarray(lam, dtype=np.float64)
        noisiest = self._lam[-1]
        beyond = asked < noisiest - 1e-6
        if beyond.any():
            raise ValueError(
                f"VPDiscrete: lam = {asked[beyond].flat[0]} is noisier than the last trained "
                f"level, {noisiest}; start the grid at sigma / alpha <= {np.exp(-noisiest):.6g}"
            )
        level = np.maximum(asked, noisiest)
        # The table falls; searchsorted wants it rising.
        low = np.clip(
            len(self._lam) - 1 - np.searchsorted(self._lam[::-1], level), 0, len(self._lam) - 2
        )
        a, b = self._lam[low], self._lam[low + 1]
        angles = [np.arctan(np.exp(-value)) for value in (a, b, level)]
        with np.errstate(invalid="ignore"):
            linear = (level - a) / (b - a)
            curved = (angles[2] - angles[0]) / (angles[1] - angles[0])
        return low - 1 + np.where(np.isfinite(a) & np.isfinite(b), linear, curved)

    @override
    def label(self, t: ArrayLike) -> Float:
        return np.asarray(t, dtype=np.float64)

    @override
    def time_of(self, label: ArrayLike) -> Float:
        return np.asarray(label, dtype=np.float64)


BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid")


def betas(
    kind: str = "linear", n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float:
    """The usual discrete beta tables, float64 [n].

    linear: Ho et al. 2020. scaled_linear: linear in sqrt(beta), latent diffusion. sigmoid: between
    beta_start and beta_end over [-6, 6], GeoDiff. The others give alpha^2 at times t in [0, 1] and
    cap beta at 0.999: squaredcos_cap_v2, the cosine law of Nichol and Dhariwal 2021; exp,
    e^(-12 t); laplace, the square root of a sigmoid of a Laplace quantile (as diffusers has it).
    """
    t = np.arange(n + 1) / n
    match kind:
        case "linear":
            return np.linspace(beta_start, beta_end, n)
        case "scaled_linear":
            return np.linspace(beta_start**0.5, beta_end**0.5, n) ** 2
        case "sigmoid":
            return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, n)))
        case "squaredcos_cap_v2":
            bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        case "exp":
            bar = np.exp(-12 * t)
        case "laplace":
            quantile = -0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6)
            bar = np.exp(-0.5 * softplus(-quantile))
        case _:
            raise ValueError(f"betas: unknown kind {kind!r}; choose one of {', '.join(BETAS)}")
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def zero_terminal_snr(alphas_cumprod: ArrayLike) -> Float:
    """Shift and scale alpha so that the last is 0 and the first stays; returns alphas_cumprod.

    alpha <- (alpha - alpha_T) alpha_0 / (alpha_0 - alpha_T); Lin et al. 2023, "Common Diffusion
    Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    alpha = np.sqrt(np.asarray(alphas_cumprod, dtype=np.float64))
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
