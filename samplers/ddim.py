"""First-order solvers: DDIM, Euler, DDPM and Euler-ancestral are one family."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..schedules import Grid
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
    return ancestral(grid, noise, noise, name="ddim", eta=eta)


def ddpm(grid: Grid, variance: Literal["small", "large"] = "small") -> Tableau:
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2).

    The mean is that of DDIM at eta = 1. The variance is that of the posterior ("small",
    sigma_t^2 (1 - e^(-2h))) or of the forward step ("large", sigma_s^2 (1 - e^(-2h)), the beta of
    the step); nothing is added in a step into clean data.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"ddpm: variance must be 'small' or 'large', got {variance!r}")
    share = np.sqrt(-np.expm1(-2 * np.diff(grid.lam)))
    posterior = grid.sigma[1:] * share
    forward = np.where(grid.sigma[1:] == 0, 0.0, grid.sigma[:-1] * share)
    drawn = posterior if variance == "small" else forward
    return ancestral(grid, posterior, drawn, name="ddpm", variance=variance)


def ancestral(
    grid: Grid, removed: np.ndarray, drawn: np.ndarray, *, name: str, **meta: object
) -> Tableau:
    """Keep sqrt(sigma_t^2 - removed^2) of the predicted noise and draw `drawn` afresh."""
    sigma_t = grid.sigma[1:]
    carry = np.sqrt(sigma_t**2 - removed**2) / grid.sigma[:-1]
    weights = np.diag(grid.alpha[1:] - grid.alpha[:-1] * carry)
    return tableau(grid, "x0", carry, weights, drawn, name=name, **meta)
