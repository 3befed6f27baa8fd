"""Every kind of schedule, shared by the tests of this folder."""

from __future__ import annotations

import numpy as np
from fewstep.schedules import (
    EDM,
    FlowMatching,
    Schedule,
    VPCosine,
    VPDiscrete,
    VPLinear,
    betas,
    zero_terminal_snr,
)

STABLE_DIFFUSION = betas("scaled_linear", 1000, 0.00085, 0.012)

LAWS: dict[str, Schedule] = {
    "vp-linear": VPLinear(),
    "vp-linear-flat": VPLinear(beta_min=12.0, beta_max=12.0),
    "vp-cosine": VPCosine(),
    "vp-cosine-s0": VPCosine(s=0.0),
    "discrete-linear": VPDiscrete(betas()),
    "discrete-scaled": VPDiscrete(STABLE_DIFFUSION),
    "discrete-cosine": VPDiscrete(betas("squaredcos_cap_v2")),
    "zero-snr": VPDiscrete(alphas_cumprod=zero_terminal_snr(np.cumprod(1 - STABLE_DIFFUSION))),
    "edm": EDM(),
    "flow": FlowMatching(),
    "flow-shift3": FlowMatching(shift=3.0),
}

# At t_max these have no signal left at all: alpha = 0, lam = -inf.
PURE_NOISE = {"vp-cosine", "vp-cosine-s0", "zero-snr", "flow", "flow-shift3"}
DISCRETE = {"discrete-linear", "discrete-scaled", "discrete-cosine", "zero-snr"}


def times(schedule: Schedule, n: int = 400) -> np.ndarray:
    """Times from t_max down to just above clean data: even, and crowded at both ends."""
    crowded = np.geomspace(1e-9, 1, n)
    share = np.unique(np.concatenate([np.linspace(0, 1, n + 1)[1:], crowded, 1 - crowded[:-1]]))
    # From the clean end, as t_zero is not always 0; the product is exact at share = 1.
    found = schedule.t_zero + share[share > 0] * (schedule.t_max - schedule.t_zero)
    return np.minimum(found, schedule.t_max)[::-1]
