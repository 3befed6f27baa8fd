"""First-order solvers: DDIM, Euler, DDPM and Euler-ancestral are one family."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..schedules import Grid
from ..schedules.base import Float
from .rows import tableau
from .tableau import Tableau


def ddim(grid: Grid, eta: float = 0.0) -> Tableau:
    """DDIM; eta = 0 is the Euler method in sigma / alpha, eta = 1 is DDPM and Euler-ancestral.

    x_t = alpha_t x0 + sqrt(sigma_t^2 - c^2) eps + c z with c = eta sigma_t sqrt(1 - e^(-2h))
    (Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta must be in [0, 1], got {eta}")
    h = np.diff(grid.lam)
    noise = eta * grid.sigma[1:] * np.sqrt(-np.expm1(-2 * h))
    return ancestral(grid, eta, noise, name="ddim")


def ddpm(grid: Grid, variance: Literal["small", "large"] = "small") -> Tableau:
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2).

    The mean is that of DDIM at eta = 1. The variance is that of the posterior ("small",
    sigma_t^2 (1 - e^(-2h))) or of the forward step ("large", sigma_s^2 (1 - e^(-2h)), the beta of
    the step); nothing is added in a step into clean data.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"ddpm: variance must be 'small' or 'large', got {variance!r}")
    sigma_t = grid.sigma[1:]
    level = sigma_t if variance == "small" else np.where(sigma_t == 0, 0.0, grid.sigma[:-1])
    noise = level * np.sqrt(-np.expm1(-2 * np.diff(grid.lam)))
    return ancestral(grid, 1.0, noise, name="ddpm")


def lcm(grid: Grid) -> Tableau:
    """x0 and fresh noise at every step, x_t = alpha_t x0 + sigma_t z: nothing of x_s is kept.

    The sampler of consistency models and their latent kin (Song et al. 2023, "Consistency Models",
    algorithm 1; Luo et al. 2023, "Latent Consistency Models"), for networks distilled to return x0
    at once; on others it is of no order.
    """
    carry = np.zeros(grid.nfe)
    return tableau(grid, "x0", carry, np.diag(grid.alpha[1:]), grid.sigma[1:], name="lcm")


def ancestral(grid: Grid, eta: float, noise: Float, *, name: str) -> Tableau:
    """Keep sigma_t sqrt(1 - eta^2 (1 - e^(-2h))) of the predicted noise, draw `noise` afresh."""
    decay = np.exp(-2 * np.diff(grid.lam))
    carry = grid.sigma[1:] / grid.sigma[:-1] * np.sqrt((1 - eta**2) + eta**2 * decay)
    weights = np.diag(grid.alpha[1:] - grid.alpha[:-1] * carry)
    return tableau(grid, "x0", carry, weights, noise, name=name)
