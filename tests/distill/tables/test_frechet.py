from __future__ import annotations

import pytest
import torch
from fewstep.distill.tables.frechet import MOST, FrechetCoordinates
from fewstep.eval.metrics import frechet_distance, moments


def sets(n: int, width: int, by: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with unlike variances, and the same moved, turned and stretched a little."""
    gen = torch.Generator().manual_seed(width)
    first = torch.randn(n, width, generator=gen, dtype=torch.float64)
    first = first @ torch.diag(torch.linspace(0.1, 3, width).double())
    first = first @ torch.randn(width, width, generator=gen, dtype=torch.float64)
    turn = torch.randn(width, width, generator=gen, dtype=torch.float64)
    shift = torch.randn(width, generator=gen, dtype=torch.float64)
    return first, first + by * (first @ turn + shift)


def near(first: torch.Tensor, second: torch.Tensor) -> float:
    found = FrechetCoordinates.of(first)
    return float((found(second).mean(0) - found(first).mean(0)).square().sum())


@pytest.mark.parametrize("width", [1, 2, 7])
def test_near_sets_are_as_far_apart_as_by_frechet(width):
    gaps = []
    for by in (1e-2, 1e-3):
        first, second = sets(4000, width, by)
        truth = frechet_distance(moments(first), moments(second))
        gaps.append(abs(near(first, second) / truth - 1))
    assert gaps[0] < 0.1
    # Of third order beside second: ten times nearer, ten times better.
    assert gaps[1] < 0.2 * gaps[0] + 1e-3


def test_a_set_is_not_unlike_itself():
    first, _ = sets(50, 3, 0.0)
    found = FrechetCoordinates.of(first)(first).mean(0)
    assert found[:3].abs().max() < 1e-12
    assert near(first, first) == 0


def test_axes_without_variance_and_those_beyond_the_largest_are_left_out():
    flat = torch.randn(30, 3, dtype=torch.float64) @ torch.randn(3, 9, dtype=torch.float64)
    assert FrechetCoordinates.of(flat)(flat).shape == (30, 3 * 6 / 2)
    wide = torch.randn(300, MOST + 20, dtype=torch.float64)
    assert FrechetCoordinates.of(wide)(wide).shape == (300, MOST * (MOST + 3) // 2)


def test_the_mean_alone_counts_as_it_is():
    first, _ = sets(4000, 4, 0.0)
    moved = first + torch.tensor([0.01, 0.0, 0.0, -0.02], dtype=torch.float64)
    # Products of a shift are of fourth order.
    assert near(first, moved) == pytest.approx(5e-4, rel=1e-2)


def test_the_means_over_the_set_itself_are_known():
    first, _ = sets(500, 5, 0.0)
    found = FrechetCoordinates.of(first)
    torch.testing.assert_close(found.expected, found(first).mean(0), rtol=1e-9, atol=1e-9)
