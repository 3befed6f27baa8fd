"""Align Your Steps: the grid whose steps lose least by a bound on the divergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...samplers import Denoiser
from ...samplers.streams import standard_normal
from ...schedules import Grid
from ...schedules.base import Float


@torch.no_grad()
def bound_costs(denoiser: Denoiser, grid: Grid, x0: Tensor, seeds: Sequence[int]) -> Float:
    """What a step from any node to any later one adds to a bound on the divergence: [T + 1, T + 1].

    The exact reverse SDE, in y = x0 + nsr eps, has the drift 2 (D(y, nsr) - y) / nsr and the
    diffusion sqrt(2 nsr), run towards nsr = 0. A step from node i that solves the linear part
    exactly, as SDE-DPM-Solver++ does, holds D at what it was there. By Girsanov's theorem the laws
    of whole paths then diverge, and the laws of their ends diverge at most, by half the mean square
    of the difference of drifts over the diffusion: with d nsr = -nsr dlam,

        cost[i, j] = integral from lam_i to lam_j of e^(2 lam) E |D(x_lam) - D(x_i)|^2 dlam

    in nats, both states on one forward path: y_i is y_lam with more noise added. E is a mean over
    data `x0` [M, ..] with one path each, drawn from the streams `seeds`: the same for all steps, so
    that costs are compared without noise between them. The integral is a trapezoid rule in
    e^(2 lam) / 2 through the nodes in between. What it takes is M evaluations at each node.

    If the denoiser is exact, D(x_i) = E[D(x_lam) | x_i], and E |D(x_lam) - D(x_i)|^2 is the drop of
    the least mean square error between both: the sum of all costs is the excess of the upper
    Riemann sum of that error, as a function of the signal-to-noise ratio, over its integral.

    Sabour et al. 2024, "Align Your Steps", theorem 3.1. There coordinate search finds 10 nodes,
    and halves their steps for more; of a table of costs `shortest` finds the least sum itself.
    Raises ValueError for a grid that ends in clean data, where the bound is infinite.
    """
    if not np.isfinite(grid.lam[-1]):
        raise ValueError("the bound of a step to clean data is infinite: give a grid of end='min'")
    noise = standard_normal(seeds, grid.nfe, x0)
    outputs: list[Tensor] = []
    for k in reversed(range(grid.nfe + 1)):
        if k < grid.nfe:
            # From pure noise nothing of the path is left.
            kept = float(grid.nsr[k + 1] / grid.nsr[k])
            noise = kept * noise + (1 - kept**2) ** 0.5 * standard_normal(seeds, k, x0)
        state = float(grid.alpha[k]) * x0 + float(grid.sigma[k]) * noise
        outputs.insert(0, denoiser(state, grid.nodes[k]))
    square = np.zeros((grid.nfe + 1, grid.nfe + 1))
    for i, here in enumerate(outputs):
        for k, there in enumerate(outputs[i + 1 :], i + 1):
            square[i, k] = float((there.double() - here.double()).square().sum()) / len(x0)
    half = 0.25 * np.diff(np.exp(2 * grid.lam)) * (square[:, :-1] + square[:, 1:])
    return np.concatenate([np.zeros((len(square), 1)), np.cumsum(half, axis=1)], axis=1)
