from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.eval import FrechetDistance, Moments, frechet_distance, half_split_distances, moments

MANY = 10**6


def gaussian(mean, cov):
    return Moments(
        MANY, torch.as_tensor(np.asarray(mean, float)), torch.as_tensor(np.asarray(cov, float))
    )


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_commuting_gaussians():
    a, b = np.linspace(0.1, 3, 64), np.linspace(2, 0.5, 64)
    shift = np.linspace(-1, 1, 64)
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    got = frechet_distance(gaussian(np.zeros(64), np.diag(a)), gaussian(shift, np.diag(b)))
    assert got == pytest.approx(expected, abs=1e-12)


def test_gaussians_that_do_not_commute():
    a = gaussian([0.0, 0], [[2, 0.5], [0.5, 1]])
    b = gaussian([0.0, 0], [[1, -0.3], [-0.3, 3]])
    product = a.cov @ b.cov
    root = torch.sqrt(product.trace() + 2 * product.det().sqrt())
    assert frechet_distance(a, b) == pytest.approx(0.929311854967773, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(float(7 - 2 * root), abs=1e-12)


def test_moments_are_those_of_numpy():
    x = normal(300, 5).float()
    got = moments(x)
    np.testing.assert_allclose(got.mean, x.double().mean(0), atol=1e-15)
    np.testing.assert_allclose(got.cov, np.cov(x.double().numpy().T, ddof=1), atol=1e-14)


@pytest.mark.parametrize("n", [16, 40, 63])
def test_fewer_samples_than_dimensions(n):
    x, y = normal(n, 64, 1), normal(n, 64, 2) * 1.5 + 0.1
    cx, cy = ((z - z.mean(0)) / (n - 1) ** 0.5 for z in (x, y))
    root = torch.linalg.svdvals(cx @ cy.T).sum()
    expected = (
        (x.mean(0) - y.mean(0)).square().sum() + cx.square().sum() + cy.square().sum() - 2 * root
    )
    with pytest.warns(UserWarning, match="mostly bias"):
        got = frechet_distance(moments(x), moments(y))
    assert got == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_a_rank_deficient_set_is_at_zero_from_itself():
    x = normal(40, 256)
    assert frechet_distance(moments(x), moments(x)) < 1e-9


def test_bias_of_the_same_law():
    d, n = 16, 400
    exact = gaussian(np.zeros(d), np.eye(d))
    values = [frechet_distance(moments(normal(n, d, seed)), exact) for seed in range(40)]
    expected = d / n + d * (d + 1) / (4 * (n - 1))
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


def test_invariances():
    x, y = normal(200, 8, 1), normal(300, 8, 2) * 2 + 1
    rotation = torch.linalg.qr(normal(8, 8, 3))[0]
    distance = frechet_distance(moments(x), moments(y))
    assert frechet_distance(moments(y), moments(x)) == pytest.approx(distance, rel=1e-12)
    turned = frechet_distance(moments(x @ rotation + 5), moments(y @ rotation + 5))
    assert turned == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(moments(3 * x), moments(3 * y)) == pytest.approx(
        9 * distance, rel=1e-12
    )


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_streaming_equals_one_shot(batch):
    reference, x = moments(normal(400, 8, 1)), normal(500, 8, 2) + 0.3
    metric = FrechetDistance(reference)
    for part in x.split(batch):
        metric.update(part.float())
    expected = frechet_distance(moments(x.float()), reference)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-10)
    assert metric.compute().dtype == torch.float64


def test_states_add_over_processes_and_survive_a_large_mean():
    x, y = normal(300, 8, 1) + 1000, normal(500, 8, 2) * 1.2 + 1000
    whole = frechet_distance(moments(y - 1000), moments(x - 1000))
    metrics = [FrechetDistance(moments(x)) for _ in range(3)]
    # One process may have had no batch at all.
    for metric, part in zip(metrics, y.split([120, 380, 0]), strict=True):
        metric.update(part)
    for name, reduce in metrics[0]._reductions.items():
        total = reduce(torch.stack([getattr(metric, name) for metric in metrics]))
        setattr(metrics[0], name, total)
    metrics[0]._computed = None
    assert float(metrics[0].compute()) == pytest.approx(whole, rel=1e-6)


def test_the_extractor_is_used_and_reset_forgets():
    reference = moments(normal(400, 4, 1))
    metric = FrechetDistance(reference, torch.nn.Linear(6, 4).double())
    x = normal(50, 6)
    metric.update(x)
    expected = frechet_distance(moments(metric.extractor(x).detach()), reference)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)
    metric.reset()
    assert int(metric.count) == 0


def test_two_halves_of_one_set():
    values = half_split_distances(normal(2000, 4), splits=3)
    assert len(set(values)) == 3
    assert all(0 < value < 0.1 for value in values)
    assert values == half_split_distances(normal(2000, 4), splits=3)


def test_bad_input_is_refused():
    reference = moments(normal(50, 4))
    metric = FrechetDistance(reference)
    with pytest.raises(ValueError, match="first: 2"):
        metric.update(torch.tensor([[0.0] * 4, [1.0] * 4, [float("nan")] * 4]))
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        metric.update(normal(5, 3))
    with pytest.raises(ValueError, match="at least 2 samples"):
        metric.moments()
    with pytest.raises(ValueError, match="4 and 5"):
        frechet_distance(reference, moments(normal(50, 5)))
