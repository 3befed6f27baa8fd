"""Chains whose answer is known: one number, standard normal, and a reward that is linear in it."""

from __future__ import annotations

import numpy as np
import torch
from fewstep.samplers import Tableau, exact
from fewstep.schedules import Grid, VPLinear
from fewstep.steering import Chain

LAW = VPLinear()
TILT = 1.5
# Of e^(TILT x) for a standard normal x.
LOG_Z = TILT**2 / 2


def reward(x):
    return TILT * x[:, 0]


def exact_chain(steps=5, levels=(), first=0.001, **options):
    """x[n+1] given x[n] of the forward process of N(0, 1), to the last digit, with x0 asked.

    Standard normal at every node, so that its reverse is x' = rho x + sqrt(1 - rho^2) z with rho
    the part of the signal that is lost in between; alpha^2 falls to `first`.
    """
    signal = np.linspace(first, 1, steps + 1)
    nodes = np.append(np.sqrt(signal[:-1]), 1.0)
    lam = np.append(0.5 * np.log(signal[:-1] / (1 - signal[:-1])), np.inf)
    grid = Grid.from_lams(LAW, [*lam[:-1].tolist(), np.inf])
    rho = grid.alpha[:-1] / grid.alpha[1:]
    assert np.allclose(grid.alpha, nodes, atol=1e-6)
    # x0 = alpha x, taken for a third of what goes on.
    share = rho / 3
    weights = np.diag(share / grid.alpha[:-1])
    table = Tableau(grid, rho - share, weights, np.diag(np.sqrt(1 - rho**2)), name="exact")
    normal = exact.gaussian([0.0], std=1.0)
    return Chain(table, lambda size: normal, (1,), levels, dtype=torch.float64, **options)
