"""Measures of rarity against loops, and against each other's facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.eval.metrics import Rarity


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def found(real, fake, **options):
    metric = Rarity(real, **options)
    for batch in fake.split(9):
        metric.update(batch)
    return {name: float(value) for name, value in metric.compute().items()}


def by_loops(real, fake, k, outlier_k):
    """Each of the three as it is defined, one sample at a time."""
    real, fake = real.double().numpy(), fake.double().numpy()
    own = np.linalg.norm(real[:, None] - real, axis=2)
    across = np.linalg.norm(fake[:, None] - real, axis=2)
    ball = np.sort(own)[:, k]
    near = np.sort(across)[:, :k].mean(1)
    rare = [ball[row <= ball].min() for row in across if (row <= ball).any()]
    reach = np.sort(own)[:, outlier_k]

    def density(row, skip):
        order = [j for j in np.argsort(row) if j != skip][:outlier_k]
        return 1 / np.mean([max(row[j], reach[j]) for j in order]), order

    dense = np.array([density(own[i], i)[0] for i in range(len(real))])
    factors = []
    for row in across:
        own_density, order = density(row, None)
        factors.append(dense[order].mean() / own_density)
    return {
        "neighbour_distance": near.mean(),
        "outlier_factor": np.mean(factors),
        "rarity": np.mean(rare),
    }


@pytest.mark.parametrize(("k", "outlier_k"), [(5, 20), (1, 3)])
def test_against_loops(k, outlier_k):
    real, fake = normal(60, 4, 1) + 3, normal(45, 4, 2) * 1.2 + 3.2
    got = found(real, fake, k=k, outlier_k=outlier_k)
    assert got == pytest.approx(by_loops(real, fake, k, outlier_k), rel=1e-6)


def test_rare_samples_are_rarer():
    """Of the outer half of a normal law all three are greater; inliers have a factor about 1."""
    real, fake = normal(2000, 3, 1), normal(600, 3, 2)
    far = fake[fake.norm(dim=1) > fake.norm(dim=1).median()]
    every, outer = found(real, fake), found(real, far)
    assert all(outer[name] > 1.05 * every[name] for name in every)
    assert every["outlier_factor"] == pytest.approx(1.05, abs=0.05)
    assert found(5 * real, 5 * fake)["outlier_factor"] == pytest.approx(
        every["outlier_factor"], rel=1e-5
    )


def test_errors_are_about_right():
    """The jackknife's error is that of the mean of independent samples."""
    real, fake = normal(500, 3, 1), normal(400, 3, 2)
    metric = Rarity(real)
    for batch in fake.split(20):
        metric.update(batch)
    errors = {name: each.error for name, each in metric.estimate().items()}
    repeats = [found(real, normal(400, 3, seed)) for seed in range(10, 34)]
    for name, error in errors.items():
        assert error == pytest.approx(np.std([each[name] for each in repeats]), rel=0.5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="must be 1 to 9"):
        Rarity(normal(10, 2), outlier_k=10)
    nowhere = found(normal(30, 2), normal(5, 2) + 100)
    assert np.isnan(nowhere["rarity"])
    assert nowhere["neighbour_distance"] > 100
