"""Windows and cutoffs from trajectories: those of normal data are known."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import build, exact, sample, suggest_time_shift, time_shift
from fewstep.samplers.matching import marginal_variance, sample_variance
from fewstep.schedules import EDM, Grid, VPDiscrete, betas
from scipy.optimize import brentq

LAW = VPDiscrete(betas())
V0, DIM = 0.25, 3072
DATA = exact.gaussian(np.zeros(DIM), std=V0**0.5)


def grid_of(steps):
    times = range(1000 - 1000 // steps, -1, -1000 // steps) if steps > 1 else [999]
    return Grid.from_times(LAW, [*times, -1])


def noises(count, seed=0):
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).double()


def time_at(variance, rule):
    """The time of a variance under a rule, by a root finder; clipped to the times there are."""
    gap = lambda t: float(marginal_variance(LAW, t, rule)) - variance  # noqa: E731
    if gap(0.0) >= 0:
        return 0.0
    return 999.0 if gap(999.0) <= 0 else brentq(gap, 0, 999)


def known(steps, rule):
    """Of DDIM and the flow from unit noise: drift, gap and error at the inner nodes; by hand."""
    grid, ours = grid_of(steps), 1.0
    start = ours / marginal_variance(LAW, grid.time[0], V0)
    found = []
    for here, there in zip(grid.nodes[:-2], grid.nodes[1:-1], strict=True):
        eps = here.sigma / (here.alpha**2 * V0 + here.sigma**2)
        ours *= (there.alpha / here.alpha * (1 - here.sigma * eps) + there.sigma * eps) ** 2
        # The flow of normal data keeps what a state is in units of its deviation.
        truth = start * float(marginal_variance(LAW, there.time, V0))
        drift = abs(time_at(ours, rule) - time_at(truth, rule))
        error = abs(truth - float(marginal_variance(LAW, there.time, rule)))
        found.append((drift, abs(ours - truth), error))
    return np.array(found).T


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("rule", [V0, 0.0])
def test_the_suggestion_is_the_known_one(steps, rule):
    x = noises(6)
    x = x / x.std(1, keepdim=True)
    found = suggest_time_shift("ddim", grid_of(steps), DATA, x, data_variance=rule)
    drift, gap, error = known(steps, rule)
    label = grid_of(steps).label[1:-1]
    np.testing.assert_array_equal(found.label, label)
    # The truth is that of 8 times the steps; above, one variance is that of many times.
    np.testing.assert_allclose(found.gap, gap, atol=0.003)
    np.testing.assert_allclose(found.error, error, atol=0.003)
    sure = (label <= 600) & (label > 0)
    np.testing.assert_allclose(found.drift[sure], drift[sure], rtol=0.03)
    useful = np.flatnonzero(gap > error)
    if rule == 0:
        # The data that the paper's rule leaves out cost it more than the steps cost DDIM.
        assert len(useful) == 0
        assert found[:2] == (0.0, label[0] + 1000 // steps)
    else:
        assert found.window == pytest.approx(min(2 * drift[useful].max(), 990 // steps), rel=0.03)
        assert found.cutoff < label[useful[-2]]


def test_errors_of_the_network_are_seen():
    """One percent too much of eps, under the paper's rule: down to where V leaves out as much."""

    def denoiser(x, node):
        return x / node.alpha - (x / node.alpha - DATA(x, node)) * 1.01

    x = noises(6)
    x = x / x.std(1, keepdim=True)
    found = suggest_time_shift("ddim", grid_of(20), denoiser, x, data_variance=0.0)
    assert found.cutoff == 300
    assert 20 < found.window <= 49.5


@pytest.mark.parametrize("steps", [10, 20])
def test_what_is_suggested_helps(steps):
    grid = grid_of(steps)
    found = suggest_time_shift("ddim", grid, DATA, noises(6))
    assert found.data_variance == pytest.approx(V0, rel=0.02)
    shift = time_shift("ddim", grid, found.window, found.cutoff, data_variance=found.data_variance)
    x = noises(8, seed=1)
    bare, shifted = (
        np.abs(sample_variance(sample(DATA, shift.table, x, row_map=each)) / V0 - 1).mean()
        for each in (None, shift)
    )
    assert shifted < 0.5 * bare


def test_chance_is_an_error_too():
    """Of few entries: V sqrt(2 / (D - 1)), in which the gap of a good solver is lost."""
    dim, law = 64, EDM()
    data = exact.gaussian(np.zeros(dim), std=0.5)
    grid = fewstep.grid(law, 30, "karras")
    x = fewstep.noise(grid, (dim,), range(200), dtype=torch.float64)
    found = suggest_time_shift("unipc-3", grid, data, x)
    assert found[:2] == (0.0, grid.label[0])
    t = grid.time[1:-1]
    np.testing.assert_allclose(found.error, (0.25 + t**2) * np.sqrt(2 / (dim - 1)), rtol=0.1)
    assert (found.gap < 0.7 * found.error).all()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "heun", "dpmpp-2s"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_whatever_is_suggested_can_be_run(name, steps):
    grid = grid_of(steps)
    found = suggest_time_shift(name, grid, DATA, noises(3), refine=2)
    shift = time_shift(name, grid, *found[:2], data_variance=found.data_variance)
    assert torch.isfinite(sample(DATA, shift.table, noises(3), row_map=shift)).all()
    own = suggest_time_shift(lambda grid: build(name, grid), grid, DATA, noises(3), refine=2)
    assert own[:3] == found[:3]


def test_data_of_unit_variance_are_noticed():
    data = exact.gaussian(np.zeros(DIM), std=1.0)
    with pytest.warns(UserWarning, match="unit variance, such as latents"):
        suggest_time_shift("ddim", grid_of(10), data, noises(3))
