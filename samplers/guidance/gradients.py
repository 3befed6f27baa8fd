"""Guidance by gradients: towards a class, or towards what was observed.

A term g = grad log p(y | x) of the score is (sigma^2 / alpha) g in x0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...schedules.grid import Node
from ..recall import Denoiser
from .free import Scale, scale_at
from .guided import Ask, Guided


def classifier(
    denoiser: Denoiser, log_prob: Callable[[Tensor, Node], Tensor], scale: Scale = 1.0
) -> Denoiser:
    """x0 + scale (sigma^2 / alpha) grad_x log p(y | x).

    `log_prob(x, node)` [B] is the logarithm of what a classifier of noisy states gives to what is
    wanted; at scale 0 it is not asked. Scale 1 and the true posterior give samples of the condition
    exactly (Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", eq. 14).
    Raises ValueError at pure noise, where the states say nothing.
    """

    def rule(ask: Ask) -> Tensor:
        w, x0 = scale_at(ask, scale), ask(denoiser)
        if w == 0:
            return x0
        with torch.enable_grad():
            x = ask.x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(x, ask.node).sum(), x)
        return x0 + w * gain(ask) * slope.to(x0.dtype)

    return Guided(rule)


def dps(
    denoiser: Denoiser,
    measure: Callable[[Tensor], Tensor],
    observed: Tensor,
    std: float,
    scale: Scale = 1.0,
) -> Denoiser:
    """Diffusion posterior sampling: x0 + scale (sigma^2 / alpha) grad_x log N(y; A(x0(x)), std^2).

    `measure` is A, any function of clean data [B, ...] that can be derived; `observed` is y, like
    what it returns. The gradient goes through the network. As if x0 were known: near noise it pulls
    too hard (Chung et al. 2022, "Diffusion Posterior Sampling for General Noisy Inverse Problems",
    eq. 11; there steps are made of the length of |y - A| instead). For linear A see `posterior`.
    """

    def rule(ask: Ask) -> Tensor:
        w = scale_at(ask, scale)
        if w == 0:
            return ask(denoiser)
        with torch.enable_grad():
            x = ask.x.detach().requires_grad_()
            x0 = ask(denoiser, x)
            gap = (observed.to(x0) - measure(x0)).square().sum()
            (slope,) = torch.autograd.grad(-gap / (2 * std**2), x)
        return (x0 + w * gain(ask) * slope).detach()

    return Guided(rule)


def posterior(denoiser: Denoiser, matrix: Tensor, observed: Tensor, std: float) -> Denoiser:
    """E[x0 | x, y] for y = A x0 + std z, with the covariance that the network implies.

        x0 + C A^T (A C A^T + std^2)^-1 (y - A x0),   C = (sigma^2 / alpha) dx0 / dx = Cov[x0 | x]

    exact where x0 given x is normal, as for normal data. `matrix` A is [M, D] on the D entries of a
    sample, `observed` y is [M] or [B, M]. M gradients through the network an evaluation (Tweedie's
    second formula; Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
    takes a number for C; Boys et al. 2023, "Tweedie Moment Projected Diffusions for
    Inverse Problems", takes this).
    """

    def rule(ask: Ask) -> Tensor:
        with torch.enable_grad():
            x = ask.x.detach().requires_grad_()
            x0 = ask(denoiser, x)
            seen = x0.flatten(1) @ matrix.to(x0).T
            # Row m is J^T a_m: C is symmetric, because J is for an exact mean.
            slopes = [
                torch.autograd.grad(each.sum(), x, retain_graph=True)[0].flatten(1)
                for each in seen.unbind(1)
            ]
        spread = gain(ask) * torch.stack(slopes, 1)
        total = spread @ matrix.to(x0).T
        total = total + std**2 * torch.eye(len(matrix)).to(total)
        gap = (observed.to(x0) - seen.detach()).expand(len(x0), -1)
        pull = torch.linalg.solve(total.mT, gap)
        moved = torch.einsum("bm,bmd->bd", pull, spread)
        return x0.detach() + moved.reshape(x0.shape)

    return Guided(rule)


def gain(ask: Ask) -> float:
    """sigma^2 / alpha: what a term of the score is in x0."""
    ask.one_level("guidance by gradients")
    node = ask.node
    if node.alpha == 0:
        raise ValueError(
            f"node {node.index} is pure noise (alpha = 0): no state there says anything about x0, "
            "so begin below it"
        )
    return node.sigma**2 / node.alpha
