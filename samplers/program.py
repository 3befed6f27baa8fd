"""A tableau compiled for the executor: per row, the few terms that are not zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..schedules.grid import Node
from .basis import Basis, affine
from .sums import Coefficient, Pairs


class Step(NamedTuple):
    """One row: what to evaluate, what to draw, what to sum, what to keep.

    The outputs at hand are those still live from before, then this row's own if `call`; `weights`
    pairs positions in that list with coefficients, `keep` lists the positions that stay live, and
    `live` names the outputs behind them. Noises likewise. x0 becomes an output in the table's basis
    as m = of_x x + of_x0 x0.
    """

    node: Node
    call: bool
    of_x: Coefficient
    of_x0: Coefficient
    draws: bool
    carry: Coefficient
    weights: Pairs
    noise: Pairs
    bias: Coefficient | None
    keep: tuple[int, ...]
    keep_noise: tuple[int, ...]
    live: tuple[int, ...]
    live_noise: tuple[int, ...]


class Terms(NamedTuple):
    """The live entries of one triangle, row by row."""

    fresh: list[bool]
    pairs: list[Pairs]
    keep: list[tuple[int, ...]]
    live: list[tuple[int, ...]]


def coefficient(value: Any) -> Coefficient:
    """A float for a scalar, a tensor for anything that broadcasts or carries a gradient."""
    if isinstance(value, Tensor):
        return value
    # Numbers of numpy are floats, too.
    return float(value) if isinstance(value, float) else torch.from_numpy(np.array(value))


def term(value: Any) -> Coefficient | None:
    """The coefficient, or None for a zero that no gradient can change."""
    return coefficient(value) if isinstance(value, Tensor) or np.any(value) else None


def live_terms(triangle: Any) -> Terms:
    """Find, for each row, which columns it uses and which are needed after it.

    A learnable triangle (a tensor) uses its whole lower part: an entry that is zero today has a
    gradient all the same.
    """
    n = len(triangle)
    used: NDArray[np.bool_] = np.tri(n, dtype=bool)
    if not isinstance(triangle, Tensor):
        if not triangle.any():
            return Terms([False] * n, [()] * n, [()] * n, [()] * n)
        used = np.asarray(triangle != 0)
        if used.ndim > 2:
            used = np.asarray(used.reshape(n, n, -1).any(axis=-1))
    columns: list[list[int]] = [[] for _ in range(n)]
    for row, column in zip(*(axis.tolist() for axis in np.nonzero(used)), strict=True):
        columns[row].append(column)
    last = {column: row for row in range(n) for column in columns[row]}
    terms = Terms([], [], [], [])
    alive: tuple[int, ...] = ()
    for row in range(n):
        fresh = row in last
        at_hand = (*alive, row) if fresh else alive
        position = {k: i for i, k in enumerate(at_hand)}
        keep = tuple([i for k, i in position.items() if last[k] > row])
        terms.fresh.append(fresh)
        pairs = [(position[k], coefficient(triangle[row, k])) for k in columns[row]]
        terms.pairs.append(tuple(pairs))
        terms.keep.append(keep)
        alive = tuple([at_hand[i] for i in keep])
        terms.live.append(alive)
    return terms


def compile_steps(
    nodes: Sequence[Node], carry: Any, weights: Any, noise: Any, bias: Any, basis: Basis
) -> tuple[Step, ...]:
    """Turn the arrays of a tableau into `Step`s; see `Tableau` for shapes."""
    outputs, noises = live_terms(weights), live_terms(noise)
    steps = []
    for n, node in enumerate(nodes[:-1]):
        call = outputs.fresh[n]
        # Nodes without a call may be where the basis is not defined.
        p, q = affine(basis, node.alpha, node.sigma) if call else (0.0, 1.0)
        steps.append(
            Step(
                node=node,
                call=call,
                of_x=float(p),
                of_x0=float(q),
                draws=noises.fresh[n],
                carry=coefficient(carry[n]),
                weights=outputs.pairs[n],
                noise=noises.pairs[n],
                bias=term(bias[n]),
                keep=outputs.keep[n],
                keep_noise=noises.keep[n],
                live=outputs.live[n],
                live_noise=noises.live[n],
            )
        )
    return tuple(steps)
