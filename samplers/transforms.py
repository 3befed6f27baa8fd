"""What changes the outputs of a solver: functions from a table to a table.

A method that replaces each output by a combination of earlier ones, m' = L m, is a product of
matrices; what others take from states besides is brought back to one form by `eliminate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..schedules import Grid
from .basis import convert
from .relations import eliminate, trailing
from .tableau import Tableau

# The order of the interpolation that DC-Solver settled on.
ORDER = 2
Reference = Literal["previous", "first"]
Scope = Literal["all", "first-order"]


def compensate(
    table: Tableau,
    ratios: ArrayLike | Tensor,
    *,
    order: int = ORDER,
    overwrite: bool = True,
    predictor: Tableau | None = None,
) -> Tableau:
    """DC-Solver: each newest output is replaced by its interpolation at a time nearby.

        m'[n] = sum_{k<=K} l_k(t') m[n-k],   t' = ratios[n] t[n] + (1 - ratios[n]) t[n-1]

    l_k are the Lagrange polynomials in time through the last K + 1 = `order` + 1 outputs, or as
    many as there are, so that 1 changes nothing and less than 1 looks back to more noise. With
    `overwrite` (the released code) later interpolations go through outputs that are replaced
    already, without through the network's own. Outputs are those of the table's basis.

    A corrector that reuses the output at its target takes it as it is: of a table with correctors
    folded in, `predictor` is the same solver without. `ratios` is one per step, or one for all that
    have K + 1 outputs; a float64 tensor makes a table with gradients. Zhao et al. 2024,
    "DC-Solver". Raises ValueError for a grid with stages and a wrong number of ratios.
    """
    plain, n = table.numeric(), table.grid.nfe
    if table.grid.stage.any():
        raise ValueError(f"{table.name} has stages inside its steps, and no step to compensate")
    if order < 1:
        raise ValueError(f"the order of compensation must be at least 1, not {order}")
    wanted = torch.as_tensor(ratios, dtype=torch.float64)
    if wanted.ndim == 0:
        wanted = torch.where(torch.arange(n) < order, torch.ones(()).double(), wanted)
    if wanted.shape != (n,):
        raise ValueError(f"{n} steps take {n} ratios, got {tuple(wanted.shape)}")
    if not wanted.isfinite().all():
        raise ValueError(f"ratios must be finite, got {wanted.tolist()}")
    change = interpolation(table.grid, wanted, order, overwrite)
    weights = torch.from_numpy(plain.weights.copy())
    own = torch.zeros_like(weights)
    if predictor is not None:
        own = (weights - torch.from_numpy(predictor.numeric().weights.copy())).diag().diag()
    # With ratios of 1 the last term is zero, and the table the same to the last bit.
    after: Any = weights @ change + own @ (torch.eye(n, dtype=torch.float64) - change)
    return replace(plain, weights=after if after.requires_grad else after.numpy())


def interpolation(grid: Grid, ratios: Tensor, order: int, overwrite: bool) -> Tensor:
    """L [N, N] of `compensate`: replaced outputs in terms of the network's own."""
    n = grid.nfe
    own = torch.eye(n, dtype=torch.float64)
    time = grid.time.tolist()
    rows: list[Tensor] = []
    for step in range(n):
        last = range(step, max(step - order, 0) - 1, -1)
        known = own if not overwrite else torch.stack([*rows, own[step]])
        row = own[step]
        if step:
            at = ratios[step] * time[step] + (1 - ratios[step]) * time[step - 1]
            row = torch.zeros(n, dtype=torch.float64)
            for k in last:
                share = torch.ones((), dtype=torch.float64)
                for other in last:
                    if other != k:
                        share = share * ((at - time[other]) / (time[k] - time[other]))
                row = row + share * known[k]
        rows.append(row)
    return torch.stack(rows)


def dualfast(
    table: Tableau,
    strength: float | Sequence[float],
    *,
    reference: Reference = "previous",
    scope: Scope = "all",
) -> Tableau:
    """DualFast: the noise that is still predicted at n is moved on from an earlier prediction.

        eps'[n] = (1 + c[n]) eps[n] - c[n] eps[r],   r = n - 1 ("previous") or 0 ("first")

    in place of each output, in whatever basis, or in the "first-order" part of each row only.
    `strength` is c, one per step (c[0] has no effect), or the last of a rise from 0 that is linear
    in the step. The exact law of the paper is not known to us (Yu et al. 2025, "DualFast",
    arXiv 2506.13058): look for the one number on your model. 0 changes nothing.

    Raises ValueError for a wrong number of strengths, another word, and a table in v or flow.
    """
    plain, n = table.numeric(), table.grid.nfe
    c = np.asarray(strength, dtype=np.float64)
    if c.ndim == 0:
        c = c * np.arange(n) / max(n - 1, 1)
    if c.shape != (n,) or not np.isfinite(c).all():
        raise ValueError(f"dualfast: {n} steps take one finite strength, or {n}, got {strength}")
    if reference not in get_args(Reference) or scope not in get_args(Scope):
        raise ValueError(
            f"dualfast: reference {reference!r} is one of {', '.join(get_args(Reference))}, scope "
            f"{scope!r} one of {', '.join(get_args(Scope))}"
        )
    if table.basis not in ("x0", "eps"):
        raise ValueError(f"dualfast: for tables in x0 or eps, not {table.basis}; see in_basis")
    before = np.maximum(np.arange(n) - 1, 0) if reference == "previous" else np.zeros(n, dtype=int)
    moved = np.diag(c) - c[:, None] * np.eye(n)[before]
    moved[0] = 0
    parts = plain.weights if scope == "all" else np.diag(plain.weights.sum(1))
    alpha, sigma = table.grid.alpha[:-1], table.grid.sigma[:-1]
    # In the table's basis m = (eps - p x) / q, and a change of eps is q times smaller in m.
    if table.basis == "eps":
        return replace(plain, weights=plain.weights + parts @ moved)
    safe = np.where(alpha > 0, alpha, 1)
    parts = parts * (-sigma / safe)
    states, outputs = parts @ moved / sigma, parts @ moved * (-alpha / sigma)
    rows = eliminate(states, plain.weights + outputs, plain.noise, plain.carry, plain.bias)
    return replace(plain, **rows._asdict())


def analytic_first_step(table: Tableau, guess: Literal["eps"] | ArrayLike = "eps") -> Tableau:
    """The table without its first evaluation, whose output is guessed: one call less.

    "eps" takes eps[0] = x[0] / sqrt(alpha^2 + sigma^2), the state in unit variance (Dockhorn et al.
    2022, "GENIE"); an array is x0[0] itself, the mean of the data, a number or an
    image of the shape of a sample. Raises ValueError for eps at pure noise, where it says nothing
    about x0, and in a table that asks the network nothing else.
    """
    if isinstance(guess, bool) or (isinstance(guess, str) and guess != "eps"):
        raise ValueError(
            f"analytic_first_step: 'eps', a number or an image for the mean, not {guess!r}"
        )
    mean = None if isinstance(guess, str) else np.asarray(guess, dtype=np.float64)
    plain = (table if mean is None else table.in_basis("x0")).numeric()
    if plain.nfe < 2 or not plain.steps[0].call:
        raise ValueError(f"{table.name}: no first evaluation that could be spared")
    first, rest = plain.weights[:, 0], plain.weights.copy()
    rest[:, 0] = 0
    if mean is not None:
        share = trailing(first, mean.ndim)
        bias = trailing(plain.bias, max(mean.ndim + 1 - plain.bias.ndim, 0))
        return replace(plain, weights=rest, bias=bias + share * mean)
    alpha, sigma = table.grid.alpha[:1], table.grid.sigma[:1]
    if alpha[0] == 0:
        raise ValueError(f"{table.name} begins at pure noise, where eps says nothing about x0")
    # m = p x + q eps, and eps = x / sqrt(alpha^2 + sigma^2).
    p, q = convert(table.basis, "eps", alpha, sigma)
    states = np.zeros_like(rest)
    states[:, 0] = first * (p + q / np.hypot(alpha, sigma))
    rows = eliminate(states, rest, plain.noise, plain.carry, plain.bias)
    return replace(plain, **rows._asdict())
