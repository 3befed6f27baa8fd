"""Tracing of functions in the style of k-diffusion: sample(model, x, sigmas)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from ..schedules import EDM, Grid
from ..schedules.base import Float
from .tableau import Expanded, Tableau


def vector(values: Float) -> Tensor:
    """A float64 sample [1, D, 1, 1] whose channels are coordinates."""
    return torch.from_numpy(np.array(values)).reshape(1, -1, 1, 1)


class Seen(NamedTuple):
    """What a sampling function showed its model, the levels it named, and what it returned."""

    states: list[Tensor]
    levels: list[float]
    result: Tensor


def trace_function(sample: Callable[..., Tensor], sigmas: Sequence[float], check: bool) -> Tableau:
    """See `trace`: the states that the model is shown are the rows of the expanded table."""
    ladder = torch.as_tensor(sigmas, dtype=torch.float64)
    name = getattr(sample, "__name__", "traced")
    generator = torch.Generator().manual_seed(0)

    def random(_: int) -> Tensor:
        return 3 * torch.randn((1, 3, 4, 4), generator=generator, dtype=torch.float64)

    # A first run counts the calls and is the comparison at the end.
    outputs, noises = Lazy(random), Lazy(random)
    start = random(0)
    original = follow(sample, ladder, start, outputs, noises)
    n = len(original.states)
    unit = np.eye(2 * n + 1)
    seen = follow(
        sample,
        ladder,
        vector(unit[0]),
        Lazy(lambda k: vector(unit[1 + k])),
        Lazy(lambda k: vector(unit[1 + n + k])),
    )
    rows = np.stack([state.numpy().reshape(-1) for state in (*seen.states, seen.result)])
    full = Expanded(rows[:, 0], rows[:, 1 : n + 1], rows[:, n + 1 :], np.zeros(n + 1))
    levels = np.append(seen.levels, float(ladder[-1]))
    # A call between the ladder's levels, or before the last call at the same level, is a stage.
    stage = ~np.isin(levels, ladder.numpy()) | np.append(levels[:-1] <= levels[1:], False)
    table = Tableau.from_expanded(
        Grid.from_times(EDM(), levels, stage), full, basis="x0", name=name
    )
    terms = [start, *[outputs[k] for k in range(n)], *[noises[k] for k in range(n)]]
    expected = torch.stack([w * term for w, term in zip(rows[-1], terms, strict=True)]).sum(0)
    error = float((original.result - expected).abs().max())
    if check and not error <= 1e-6 * float(expected.abs().max()):
        raise ValueError(
            f"trace: {name} is not linear: it differs from its own impulses by {error:.3g}"
        )
    return table


class Lazy(dict[int, Tensor]):
    """Tensors made when first asked for, and then kept."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, key: int) -> Tensor:
        self[key] = self.make(key)
        return self[key]


def follow(
    sample: Callable[..., Tensor], ladder: Tensor, x: Tensor, outputs: Lazy, noises: Lazy
) -> Seen:
    """Run a k-diffusion style sampler with given outputs and noises; noise k follows call k."""
    seen = Seen([], [], x)
    drawn: list[int] = []

    def model(state: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        seen.states.append(state.clone())
        seen.levels.append(float(sigma.reshape(-1)[0]))
        return outputs[len(seen.states) - 1]

    def draw(*_: Any, **__: Any) -> Tensor:
        drawn.append(len(seen.states) - 1)
        if drawn.count(drawn[-1]) > 1:
            raise ValueError("trace: the sampler draws noise twice between two network calls")
        return noises[drawn[-1]]

    known = inspect.signature(sample).parameters
    options = {"disable": True, "noise_sampler": draw}
    with patch.object(torch, "randn_like", draw):
        result = sample(model, x, ladder, **{k: v for k, v in options.items() if k in known})
    return Seen(seen.states, seen.levels, result)
