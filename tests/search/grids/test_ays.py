"""The bound of Align Your Steps where it is known."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear
from fewstep.search.grids import bound_costs, cheapest

STD, DIM = 0.7, 3


@pytest.fixture(scope="module")
def gaussian():
    denoiser = samplers.exact.gaussian(np.full(DIM, 0.4), std=STD)
    data = 0.4 + STD * torch.randn(1500, DIM, generator=torch.Generator().manual_seed(1)).double()
    return denoiser, data


def closed(snr: np.ndarray) -> np.ndarray:
    """Of a Gaussian the least error is DIM v / (1 + v snr), and the bound an integral of drops.

    With q = 1 + v snr a step from i to j adds DIM / 2 (q_j / q_i - 1 - log(q_j / q_i)).
    """
    q = 1 + STD**2 * snr
    ratio = q[None, :] / q[:, None]
    return np.triu(DIM / 2 * (ratio - 1 - np.log(ratio)), 1)


@pytest.mark.parametrize("law", [VPLinear(), EDM(), FlowMatching()], ids=["vp", "edm", "flow"])
def test_the_costs_of_a_gaussian(gaussian, law):
    denoiser, data = gaussian
    grid = Grid.from_times(law, law.time(np.linspace(-2.5, 2.0, 41)))
    cost = bound_costs(denoiser, grid, data, range(len(data)))
    upper = np.triu_indices(len(cost), 1)
    far = closed(np.exp(2 * grid.lam))
    np.testing.assert_allclose(cost[0, 14:], far[0, 14:], rtol=0.08)
    np.testing.assert_allclose(cost[20, 28:], far[20, 28:], rtol=0.08)
    assert (cost[upper] >= 0).all()
    assert (np.tril(cost) == 0).all()


def test_the_best_nodes_of_a_gaussian(gaussian):
    """1 + v snr is geometric: the sum of q_j / q_i at a given product."""
    denoiser, data = gaussian
    law = VPLinear()
    fine = Grid.from_times(law, law.time(np.linspace(-2.5, 2.5, 61)))
    cost = bound_costs(denoiser, fine, data[:300], range(300))
    (lam,) = cheapest(fine, cost, [5]).lams
    q = np.log1p(STD**2 * np.exp(2 * np.array(lam)))
    exact = np.linspace(q[0], q[-1], 6)
    np.testing.assert_allclose(q, exact, atol=0.15)


def test_pure_noise_has_no_path(gaussian):
    denoiser, data = gaussian
    grid = fewstep.grid(FlowMatching(), 8, "uniform", end="min", t_min=0.1)
    cost = bound_costs(denoiser, grid, data[:500], range(500))
    near = fewstep.grid(FlowMatching(), 8, "uniform", end="min", t_min=0.1, t_max=0.9999)
    np.testing.assert_allclose(
        cost[0, 1:], bound_costs(denoiser, near, data[:500], range(500))[0, 1:], rtol=0.02
    )


def test_it_is_the_same_every_time_and_ends_before_clean_data(gaussian):
    denoiser, data = gaussian
    grid = fewstep.grid(VPLinear(), 6, "karras", end="min")
    one, other = (bound_costs(denoiser, grid, data[:8], range(8)) for _ in range(2))
    assert (one == other).all()
    assert (one != bound_costs(denoiser, grid, data[:8], range(8, 16))).any()
    with pytest.raises(ValueError, match="clean data is infinite"):
        bound_costs(denoiser, fewstep.grid(VPLinear(), 6, "karras"), data[:8], range(8))
