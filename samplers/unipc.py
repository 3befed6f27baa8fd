"""UniP, UniC and UniPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..schedules import Grid
from .basis import Basis
from .kernels import Kernel, kernel
from .multistep import Orders, Variant, corrected, lam_moments, polynomial_weights, step_orders
from .rows import tableau
from .tableau import Tableau

B = Literal["bh1", "bh2", "exact"]


def unipc(
    grid: Grid,
    order: Orders = 3,
    variant: B = "bh2",
    corrector: bool | Sequence[bool] = True,
    prediction: Basis = "x0",
    lower_final: bool = True,
) -> Tableau:
    """UniPC-p: predictor UniP-p, corrector UniC-p that reuses the next output (no extra call).

    Both integrate the polynomial in lam through p outputs (UniC: p + 1, the target included).
    `variant` is B(h): it matters for UniP-2 and UniC-1 only, where bh1 and bh2 replace the solved
    weight by 1/2; "exact" solves there too. `corrector` may be one flag per step; False is UniP.
    The corrector costs nothing here either: it is folded into the next row. The order is p + 1 with
    and p without it (Zhao et al. 2023, "UniPC", theorems 3.1 and 3.2).
    """
    if variant not in ("bh1", "bh2", "exact"):
        raise ValueError(f"unipc: variant must be 'bh1', 'bh2' or 'exact', got {variant!r}")
    linear = kernel(grid, prediction)
    orders = step_orders(grid, order, lower_final)
    predictor = polynomial_weights(linear, grid.lam, lam_moments(linear, variant), orders)
    weights = corrected(
        linear.carry, predictor, unic(grid, linear, orders + 1, variant, predictor, corrector)
    )
    name = "unipc" if np.any(corrector) else "unip"
    return tableau(grid, prediction, linear.carry, weights, name=name)


def unic(
    grid: Grid,
    linear: Kernel,
    counts: np.ndarray,
    variant: Variant,
    predictor: np.ndarray,
    mask: bool | Sequence[bool] = True,
) -> np.ndarray:
    """Corrector rows [N, N + 1] through `counts[n]` outputs, the target's first.

    Rows switched off by `mask`, the last row and rows of infinite length repeat the predictor.
    """
    n = grid.nfe
    on = (
        np.broadcast_to(np.asarray(mask, dtype=bool), n) if np.ndim(mask) == 0 else np.asarray(mask)
    )
    if on.shape != (n,):
        raise ValueError(f"corrector: {n} steps need one flag or {n} flags, got {len(on)}")
    on = on & np.isfinite(linear.h) & (np.arange(n) < n - 1)
    rows = polynomial_weights(
        linear, grid.lam, lam_moments(linear, variant), np.where(on, counts, 0), ahead=1
    )
    rows[~on, :-1] = predictor[~on]
    return rows
