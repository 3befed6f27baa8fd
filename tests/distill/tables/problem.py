"""A mixture with an exact score, its teacher, and held-out samples."""

from __future__ import annotations

from functools import cache

import numpy as np
from fewstep import samplers
from fewstep.distill.tables import Teacher
from fewstep.samplers import Denoiser
from fewstep.samplers.fit import teach
from fewstep.schedules import VPLinear, grid

LAW = VPLinear()
STEPS = 60


def mixture(seed: int = 0) -> Denoiser:
    means = 0.8 * np.random.default_rng(seed).normal(size=(8, 16))
    return samplers.exact.mixture(means, std=0.2)


@cache
def teacher(first: int, *counts: int, seed: int = 0) -> Teacher:
    """Batches of `counts` noises, of the seeds from `first` on."""
    fine = grid(LAW, STEPS, "quadratic")
    table = samplers.build("dpmpp-3m", fine)
    batches = []
    for count in counts:
        noises = samplers.noise(fine, (16,), range(first, first + count)).double()
        batches.append(teach(table, mixture(seed), noises / float(fine.sigma[0])))
        first += count
    return Teacher(fine, tuple(batches))


def held_out(seed: int = 0) -> Teacher:
    return teacher(50_000, 500, seed=seed)


def plain(nfe: int, power: float = 1.0) -> list[int]:
    """Evenly spread places among the teacher's nodes."""
    return np.round(STEPS * (1 - (1 - np.arange(nfe) / nfe) ** power)).astype(int).tolist()
