"""The exponential integrals behind every solver, and the polynomial rule.

In a step of length h = lam_t - lam_s, with v in [0, 1] the distance from lam_s over h, the exact
solution is, for a stochasticity tau >= 0 (tau = 0: the probability-flow ODE),

    x_t = e^(-tau^2 h) (sigma_t / sigma_s) x_s
          + alpha_t int_0^1 y e^(-y (1 - v)) x0(v) dv + sigma_t sqrt(1 - e^(-2 tau^2 h)) z

with y = (1 + tau^2) h, in terms of x0, and

    x_t = (alpha_t / alpha_s) x_s
          - (1 + tau^2) (alpha_t sigma_s / alpha_s) int_0^1 h e^(-h v) eps(v) dv
          + tau sigma_t sqrt(e^(2 h) - 1) z

in terms of eps (Lu et al. 2022, "DPM-Solver++", eq. 4 and 14; Xue et al. 2023, "SA-Solver",
eq. 11). A solver replaces x0(v) or eps(v) by a polynomial through known outputs; its weights
follow from the moments of the kernel, and from nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import hyp1f1

from ..schedules import Grid
from ..schedules.base import Float
from .basis import Basis


def moments(y: ArrayLike, count: int, basis: Basis) -> Float:
    """mu_j = y int_0^1 k(v) v^j dv for j < count, shape [count, *y.shape].

    k(v) = e^(-y (1 - v)) for x0, so that mu_j = y j! phi_{j+1}(-y), and e^(-y v) for eps. Written
    as Kummer functions, 1F1(1; j+2; -y) and 1F1(j+1; j+2; -y), both of which scipy evaluates to
    1e-14 for all y >= 0.
    """
    y = np.asarray(y, dtype=np.float64)
    j = np.arange(count, dtype=np.float64).reshape(-1, *[1] * y.ndim)
    first = np.ones_like(j) if basis == "x0" else j + 1
    return y * hyp1f1(first, j + 2, -y) / (j + 1)


def interpolate(nodes: Float, mu: Float) -> Float:
    """Weights w with sum_k w_k nodes_k^j = mu_j: the integral of the interpolating polynomial.

    `nodes` is [..., K] in units of h from lam_s, `mu` [..., K]; returns [..., K].
    """
    powers = np.arange(nodes.shape[-1])[:, None]
    return np.linalg.solve(nodes[..., None, :] ** powers, mu[..., None])[..., 0]


class Kernel(NamedTuple):
    """The exact linear parts of all N steps of a grid; float64 [N] each.

    x[n+1] = carry[n] x[n] + scale[n] (integral of the outputs) + noise[n] z[n], where the integral
    of v^j is `moments(y[n], ..)[j]`. A step that starts at pure noise or ends in clean data has
    h = y = inf: only a constant output can be integrated there, with weight `first`. Such a first
    step takes x0 whatever the basis is, because eps says nothing about x0 at alpha = 0.
    """

    basis: Basis
    h: Float
    y: Float
    carry: Float
    scale: Float
    noise: Float

    @property
    def first(self) -> Float:
        """Weight of a constant output: scale mu_0, with its limits."""
        return self.scale * -np.expm1(-self.y)


def kernel(grid: Grid, basis: Basis, tau: ArrayLike = 0.0) -> Kernel:
    """Linear parts of every step; `tau` is a number or one per step.

    Raises ValueError for a basis other than x0 and eps, and for a tau that is not finite.
    """
    if basis not in ("x0", "eps"):
        raise ValueError(f"a solver works on x0 or eps outputs, not {basis!r}")
    tau2 = np.broadcast_to(np.square(np.asarray(tau, dtype=np.float64)), grid.nfe)
    if not np.isfinite(tau2).all():
        raise ValueError(f"tau must be finite, got {np.asarray(tau).tolist()}")
    h = np.diff(grid.lam)
    if not (h > 0).all():
        n = int((~(h > 0)).argmax())
        raise ValueError(
            f"step {n} of the grid does not go forward: its lam is {grid.lam[n]:.6g}, the next is "
            f"{grid.lam[n + 1]:.6g}"
        )
    alpha, sigma = grid.alpha[:-1], grid.sigma[:-1]
    alpha_t, sigma_t = grid.alpha[1:], grid.sigma[1:]
    with np.errstate(invalid="ignore"):
        # 0 * inf: without stochasticity nothing decays, however long the step.
        decay = np.where(tau2 == 0, 0.0, tau2 * h)
        y = h + decay
    data = Kernel(
        "x0",
        h,
        y,
        carry=np.exp(-decay) * sigma_t / sigma,
        scale=alpha_t,
        noise=sigma_t * np.sqrt(-np.expm1(-2 * decay)),
    )
    if basis == "x0":
        return data
    pure = alpha == 0
    # The limit into clean data is the plain x0: no noise may be left over.
    tau2 = np.where(sigma_t == 0, 0.0, tau2)
    growth = alpha_t / np.where(pure, 1.0, alpha)
    reach = growth * sigma  # sigma_t e^h, without overflow
    return Kernel(
        "eps",
        h,
        h,
        carry=np.where(pure, data.carry, growth),
        scale=np.where(pure, alpha_t, -(1 + tau2) * reach),
        noise=np.where(pure, data.noise, np.sqrt(tau2) * reach * np.sqrt(-np.expm1(-2 * h))),
    )
