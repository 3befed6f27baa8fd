"""Made-up records of a run with known numbers."""

from __future__ import annotations

import numpy as np
from fewstep.eval.bench.record import written
from fewstep.eval.metrics import Estimate


def estimate(value: float, spread: float = 0.1, seed: int = 0) -> Estimate:
    """An estimate whose ten replicates scatter around the value."""
    noise = np.random.default_rng(seed).standard_normal(10)
    return Estimate(value, value + spread * (noise - noise.mean()), np.full(10, 5.0))


def record(curve="ddim", nfe=5, seed=0, *, values=None, allowed=None, **more):
    found = {"frechet/rows-4": estimate(1.0), "rmse": estimate(0.5)} if values is None else values
    return {
        "slug": f"{curve}-{nfe:03d}",
        "panel": "",
        "model": "m",
        "guidance": 1.0,
        "seed": seed,
        "curve": curve,
        "solver": curve,
        "spacing": "lam",
        "nfe": nfe,
        "nfe_allowed": nfe if allowed is None else allowed,
        "images": 50,
        "not_finite": [],
        "values": written(found),
        "calls_per_image": float(nfe),
        "seconds_per_image": 0.001 * nfe,
        "outside": 0.0,
        "peak_bytes": None,
    } | more
