"""PNDM: fourth-order Adams-Bashforth on the DDIM transfer, with its two warm-ups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ..schedules import Grid
from .rows import Row, chain
from .runge_kutta import RK4
from .tableau import Tableau

# Adams-Bashforth weights for 1 to 4 outputs, newest first.
ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(grid: Grid, warmup: Literal["euler", "rk4"] = "euler") -> Tableau:
    """PNDM (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds").

    Every row is the DDIM transfer x_t = (alpha_t / alpha_s) x_s + (sigma_t - sigma_s alpha_t /
    alpha_s) e with e a combination of outputs: Adams-Bashforth of order 4 once four are known, also
    in a step into clean data, where the transfer is regular. `warmup` "euler" repeats the first
    step with the mean of the outputs at both ends (N + 1 evaluations; `skip_prk_steps` of
    diffusers); "rk4" takes the first three steps by pseudo Runge-Kutta, 4 evaluations each, with
    stages midway in time. Raises ValueError on a grid that starts at pure noise.
    """
    if warmup not in ("euler", "rk4"):
        raise ValueError(f"pndm: warmup must be 'euler' or 'rk4', got {warmup!r}")
    if grid.alpha[0] == 0:
        raise ValueError("pndm: node 0 is pure noise (alpha = 0), where eps says nothing about x0")
    lam, stage = [grid.lam[0]], [False]
    rows: list[tuple[int, dict[int, float]]] = []
    history: list[int] = []
    for n in range(grid.nfe):
        base, last = len(lam) - 1, grid.lam[n + 1]
        history = [base, *history[:3]]
        if warmup == "rk4" and n < 3 and np.isfinite(last):
            middle = float(grid.require_schedule().lam(grid.time[n : n + 2].mean()))
            lam += [middle, middle, last, last]
            stage += [True, True, True, False]
            rows += [(base, {base + i: 1.0}) for i in range(3)]
            rows.append((base, {base + i: w for i, w in enumerate(RK4.b)}))
            continue
        if warmup == "euler" and n == 0 and np.isfinite(last):
            lam.append(last)
            stage.append(True)
            rows += [(base, {base: 1.0}), (base, {base: 1 / 2, base + 1: 1 / 2})]
        else:
            rows.append((base, dict(zip(history, ADAMS[len(history) - 1], strict=True))))
        lam.append(last)
        stage.append(False)
    nodes = grid.with_nodes(np.array(lam), np.array(stage))
    return chain(
        nodes, "eps", [transfer(nodes, n, *row) for n, row in enumerate(rows)], name="pndm"
    )


def transfer(nodes: Grid, n: int, base: int, combination: Mapping[int, float]) -> Row:
    """The DDIM transfer from node `base` to node n + 1 with a combination of outputs."""
    carry = nodes.alpha[n + 1] / nodes.alpha[base]
    step = nodes.sigma[n + 1] - nodes.sigma[base] * carry
    return Row(base, float(carry), {k: float(step * w) for k, w in combination.items()})
