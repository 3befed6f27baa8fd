"""Prediction types as affine maps of (x, x0), and the exact change between them."""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

from ..schedules.base import Float

Scalars = TypeVar("Scalars", float, Float)
Basis = Literal["x0", "eps", "v", "flow"]
BASES: tuple[Basis, ...] = get_args(Basis)


def affine(basis: Basis, alpha: Scalars, sigma: Scalars) -> tuple[Scalars, Scalars]:
    """Coefficients (p, q) of m = p x + q x0, where x = alpha x0 + sigma eps; floats or arrays.

    eps = (x - alpha x0) / sigma;  v = alpha eps - sigma x0 (Salimans and Ho 2022);
    flow = eps - x0.
    """
    a, s = alpha, sigma
    match basis:
        case "x0":
            return 0 * a, 0 * a + 1
        case "eps":
            return 1 / s, -a / s
        case "v":
            return a / s, -(a * a + s * s) / s
        case "flow":
            return 1 / s, -(a + s) / s
    raise ValueError(f"unknown prediction {basis!r}; choose one of {', '.join(BASES)}")


def preconditioning(nsr: Scalars, sigma_data: float) -> tuple[Scalars, Scalars, Scalars]:
    """(c_in, c_skip, c_out) of x0 = c_skip x + c_out F(c_in x), on states x = x0 + nsr eps.

    Karras et al. 2022, table 1.
    """
    total = (nsr**2 + sigma_data**2) ** 0.5
    return 1 / total, (sigma_data / total) ** 2, nsr * sigma_data / total


def convert(source: Basis, target: Basis, alpha: Float, sigma: Float) -> tuple[Float, Float]:
    """Coefficients (P, Q) of m_source = P x + Q m_target at each node.

    Raises ValueError where the target says nothing about x0 (eps at alpha = 0).
    """
    p1, q1 = affine(source, alpha, sigma)
    p2, q2 = affine(target, alpha, sigma)
    if (q2 == 0).any():
        raise ValueError(
            f"node {int((q2 == 0).argmax())} has alpha = 0, where a prediction of {target} says "
            f"nothing about x0; use the x0, v or flow basis"
        )
    return p1 - q1 * p2 / q2, q1 / q2
