"""Comparing tables, shared by the tests of samplers."""

from __future__ import annotations

from typing import Any

import numpy as np
from fewstep.samplers import Tableau
from fewstep.schedules import Grid, VPDiscrete

# The noise range of Stable Diffusion, in the words of diffusers.
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def numbers(table: Tableau) -> np.ndarray:
    """All coefficients side by side, one row per step."""
    return np.column_stack([table.carry, table.weights, table.noise])


def row_error(ours: Tableau, theirs: Tableau, rows: slice = slice(None)) -> float:
    """The largest difference in a row over the largest entry of that row, in `theirs`' basis."""
    a, b = numbers(ours.in_basis(theirs.basis))[rows], numbers(theirs)[rows]
    assert a.shape == b.shape
    return float((np.abs(a - b).max(1) / np.abs(a).max(1)).max())


def steps_of(table: Tableau) -> Grid:
    """The grid without the stages inside its steps: what a builder is given."""
    kept = np.flatnonzero(~table.grid.stage)
    return table.grid.select(kept.tolist(), [False] * len(kept))


def levels_of(scheduler: Any) -> VPDiscrete:
    """Our schedule on the very levels of a scheduler: they are float32 products."""
    return VPDiscrete(alphas_cumprod=scheduler.alphas_cumprod.double().numpy())
