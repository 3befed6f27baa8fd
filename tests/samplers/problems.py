"""Problems with known answers, shared by the tests of samplers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import fewstep
import numpy as np
import torch
from fewstep.samplers import exact
from fewstep.schedules import (
    EDM,
    FlowMatching,
    Grid,
    Schedule,
    VPCosine,
    VPDiscrete,
    VPLinear,
    betas,
    zero_terminal_snr,
)
from torch import Tensor

SCHEDULES: dict[str, Schedule] = {
    "vp-linear": VPLinear(),
    "vp-cosine": VPCosine(),
    "vp-discrete": VPDiscrete(betas()),
    "sd": VPDiscrete(betas("scaled_linear", 1000, 0.00085, 0.012)),
    "zero-snr": VPDiscrete(
        alphas_cumprod=zero_terminal_snr(
            np.cumprod(1 - betas("scaled_linear", 1000, 0.00085, 0.012))
        )
    ),
    "edm": EDM(),
    "flow": FlowMatching(),
    "flow-shift3": FlowMatching(3.0),
}

SOLVERS = [solver.name for solver in fewstep.samplers.solvers()]


@dataclass(frozen=True)
class Problem:
    """A mixture, states at `sigma_max` in EDM form and their exact ends at `sigma_min`."""

    denoiser: exact.Mixture
    sigma_max: float
    sigma_min: float
    x: Tensor
    end: Tensor

    def grid(self, n: int) -> Grid:
        """Karras nodes between the ends."""
        schedule = EDM(self.sigma_min, self.sigma_max)
        return fewstep.grid(schedule, n, "karras", end="min")

    def error(self, table: fewstep.Tableau, x: Tensor | None = None) -> float:
        """Root mean square distance of the samples from the exact ends."""
        got = fewstep.sample(self.denoiser, table, self.x if x is None else x)
        return float((got.double() - self.end).square().mean().sqrt())


@cache
def gentle() -> Problem:
    """Three overlapping components in 3-D with full covariances, ends by RK4 in lam."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(3, 3, 3))
    cov = factors @ factors.swapaxes(1, 2) / 3 + 0.2 * np.eye(3)
    denoiser = exact.mixture(rng.normal(size=(3, 3)), [0.5, 0.3, 0.2], cov=cov)
    # From far out, where the data is a point and the low orders of the first steps cost nothing.
    x = torch.from_numpy(400.0 * rng.normal(size=(64, 3)))
    return Problem(denoiser, 400.0, 0.05, x, integrate(denoiser, x, 400.0, 0.05))


def integrate(
    denoiser: exact.Mixture, x: Tensor, start: float, stop: float, n: int = 2000
) -> Tensor:
    """Classical RK4 on d(x)/d(log sigma) = x - x0(x, sigma), written out independently."""
    levels = np.geomspace(start, stop, 2 * n + 1)
    nodes = Grid.from_sigmas(levels).nodes
    h = float(np.log(stop / start)) / n

    def slope(state: Tensor, k: int) -> Tensor:
        # The last node has no follower but the denoiser needs only its levels.
        return state - denoiser(state, nodes[k])

    for k in range(0, 2 * n, 2):
        a = slope(x, k)
        b = slope(x + h / 2 * a, k + 1)
        c = slope(x + h / 2 * b, k + 1)
        d = slope(x + h * c, k + 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x
