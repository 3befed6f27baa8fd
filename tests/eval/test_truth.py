"""The whole way from noise to a number, where the number is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.eval.extractors import Outputs
from fewstep.eval.metrics import Moments, frechet_distance, moments
from fewstep.eval.models import Draw
from fewstep.eval.models.model import in_batches
from fewstep.eval.score import instruments, score
from fewstep.eval.statistics import Statistics
from fewstep.schedules import grid

from .exact import MEAN, SCHEDULE, SHAPE, SPREAD, gaussian_model

N, D = 1000, 64
SEEDS = range(N)
# What the data are: nothing is sampled here.
DATA = Moments(None, torch.full((D,), MEAN).double(), SPREAD**2 * torch.eye(D).double())


def table_of(solver, nfe, spacing="lam"):
    return samplers.build(solver, grid(SCHEDULE, nfe, spacing))


def features_of(table):
    """The pixels as they are, without rounding to 256 levels."""
    return in_batches(gaussian_model(), table, Draw(SEEDS), batch_size=N).flatten(1)


def endpoints(table):
    """Where the exact ODE takes the noise: the same quantile of the data, pixel by pixel."""
    alpha, sigma = table.grid.alpha[0], table.grid.sigma[0]
    start = samplers.noise(table.grid, SHAPE, SEEDS).double().flatten(1)
    return MEAN + SPREAD * (start - alpha * MEAN) / np.hypot(alpha * SPREAD, sigma)


def frechet(features, reference=DATA):
    outputs = Outputs(features)
    metrics = instruments(("frechet",), Statistics({}, reference), outputs, "cpu")
    return score(outputs, metrics)["frechet"]


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp-2m", 2)])
def test_the_distance_falls_with_the_square_of_the_solvers_error(solver, order):
    tables = [table_of(solver, nfe, "quadratic") for nfe in (20, 40, 80)]
    # The same noise on both sides, so that the distance has no bias and goes to 0.
    exact = moments(endpoints(tables[0]))
    values = [frechet(features_of(table), exact).value for table in tables]
    slopes = np.diff(np.log2(values))
    assert slopes == pytest.approx([-2 * order] * 2, abs=0.4)


def limit():
    """The exact law at the end, which starts without alpha times the mean, and the bias of N."""
    table = table_of("ddim", 2)
    alpha, sigma = table.grid.alpha[0], table.grid.sigma[0]
    root = np.hypot(alpha * SPREAD, sigma)
    law = Moments(
        None,
        torch.full((D,), MEAN - SPREAD * alpha * MEAN / root).double(),
        (SPREAD * sigma / root) ** 2 * torch.eye(D).double(),
    )
    return frechet_distance(law, DATA) + SPREAD**2 * (D / N + D * (D + 1) / (4 * (N - 1)))


def test_the_limit_is_the_closed_form_and_the_bias_of_a_finite_set():
    found = frechet(features_of(table_of("dpmpp-2m", 64)))
    assert abs(found.value - limit()) < 3 * found.error
    assert abs(found.corrected) < 3 * found.error
    # So that a bias of half the size would show.
    assert found.error < 0.1 * limit()


@pytest.mark.parametrize("row", [18, 21, 24])
def test_a_sampler_that_lacks_one_step_is_found_out(row):
    table = table_of("dpmpp-2m", 40)
    carry, weights = table.carry.copy(), table.weights.copy()
    carry[row], weights[row] = 1.0, 0.0
    found = frechet(features_of(replace(table, carry=carry, weights=weights)))
    assert found.value - limit() > 3 * found.error
