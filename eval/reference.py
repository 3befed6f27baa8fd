"""The endpoint that all solvers converge to, from many steps of one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .. import samplers
from .generate import Draw, generate
from .subject import Subject


@dataclass(frozen=True, eq=False)
class Reference:
    """Converged samples [N, C, H, W], and how far another solver of many steps ends from them.

    `disagreement` is the RMSE between the two over the first `checked` samples: errors of that size
    or below cannot be told from the reference's own.
    """

    samples: Tensor
    disagreement: float
    checked: int


def rmse(a: Tensor, b: Tensor) -> float:
    """Root of the mean squared difference over all samples and pixels."""
    return float((a.double() - b.double()).square().mean().sqrt())


def converge(
    subject: Subject,
    table: samplers.Tableau,
    check: samplers.Tableau,
    draw: Draw,
    checked: int,
    on_call: Callable[[int], None] = lambda images: None,
) -> Reference:
    """Sample with `table`, and the first `checked` of `draw` again with `check`.

    Both must be deterministic solvers of many steps; ValueError for one that draws noise.
    """
    for each in (table, check):
        if each.stochastic:
            raise ValueError(f"a reference must be deterministic, and {each.name} draws noise")
    samples = generate(subject, table, draw, on_call)
    again = generate(subject, check, draw.first(checked), on_call)
    return Reference(samples, rmse(samples[:checked], again), len(again))
