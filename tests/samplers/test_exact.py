"""Exact denoisers against sampling, closed forms and each other."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import exact
from fewstep.samplers.denoiser import several
from fewstep.schedules import FlowMatching, Grid, VPLinear

NODE = Grid.from_lams(VPLinear(), [-0.3, 1.0]).nodes[0]
RNG = np.random.default_rng(0)


def covariance(dim: int) -> np.ndarray:
    factor = RNG.normal(size=(dim, dim))
    return factor @ factor.T / dim


def test_gaussian_is_the_linear_regression():
    """E[x0 | x] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)."""
    mean, cov = RNG.normal(size=4), covariance(4)
    x = torch.from_numpy(RNG.normal(size=(5, 4)))
    gain = NODE.alpha * cov @ np.linalg.inv(NODE.alpha**2 * cov + NODE.sigma**2 * np.eye(4))
    expected = mean + (x.numpy() - NODE.alpha * mean) @ gain.T
    np.testing.assert_allclose(exact.gaussian(mean, cov)(x, NODE), expected, rtol=1e-10)


def test_mixture_is_the_score():
    """x0 = (x + sigma^2 grad log p(x)) / alpha (Tweedie), by autograd on the density."""
    means, weights = (
        torch.from_numpy(RNG.normal(size=(3, 2))),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    )
    covs = torch.from_numpy(np.stack([covariance(2) + 0.1 * np.eye(2) for _ in range(3)]))
    x = torch.from_numpy(RNG.normal(size=(6, 2))).requires_grad_()
    noisy = NODE.alpha**2 * covs + NODE.sigma**2 * torch.eye(2).double()
    parts = torch.distributions.MultivariateNormal(NODE.alpha * means, noisy)
    density = torch.logsumexp(weights.log() + parts.log_prob(x[:, None]), 1)
    (score,) = torch.autograd.grad(density.sum(), x)
    expected = (x + NODE.sigma**2 * score) / NODE.alpha
    got = exact.mixture(means, weights, cov=covs)(x, NODE)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_low_rank_equals_full():
    vectors = np.linalg.qr(RNG.normal(size=(6, 2)))[0]
    values, tail = np.array([2.0, 0.5]), 0.1
    full = vectors @ np.diag(values - tail) @ vectors.T + tail * np.eye(6)
    mean = RNG.normal(size=(1, 6))
    thin = exact.low_rank_mixture(mean, [1.0], vectors[None], values[None], [tail])
    x = torch.from_numpy(RNG.normal(size=(5, 2, 3)))
    expected = exact.mixture(mean, cov=full)(x.reshape(5, 6), NODE).reshape(5, 2, 3)
    torch.testing.assert_close(thin(x, NODE), expected, rtol=1e-10, atol=1e-10)


def test_isotropic_equals_full():
    means = RNG.normal(size=(3, 4))
    x = torch.from_numpy(RNG.normal(size=(5, 4)))
    stds = np.array([0.3, 0.5, 1.0])
    full = exact.mixture(means, cov=np.stack([s**2 * np.eye(4) for s in stds]))
    torch.testing.assert_close(exact.mixture(means, std=stds)(x, NODE), full(x, NODE))


def test_empirical_is_a_mixture_of_points():
    """Chunked softmax over the data equals a mixture of zero width."""
    data = torch.from_numpy(RNG.normal(size=(50, 2, 3)))
    x = torch.from_numpy(RNG.normal(size=(4, 2, 3)))
    points = exact.mixture(data.reshape(50, 6), std=0.0)
    expected = points(x.reshape(4, 6), NODE).reshape(x.shape)
    for chunk in (7, 50, 1000):
        torch.testing.assert_close(
            exact.empirical(data, chunk)(x, NODE), expected, rtol=1e-8, atol=1e-8
        )


def test_empirical_ends_on_the_data():
    """Sampling with the empirical denoiser returns rows of the data."""
    data = torch.from_numpy(RNG.normal(size=(20, 3)))
    grid = fewstep.grid(VPLinear(), 40, "lam")
    x = fewstep.noise(grid, (3,), range(8), dtype=torch.float64)
    end = fewstep.sample(exact.empirical(data), fewstep.build("dpmpp-2m", grid), x)
    distance = torch.cdist(end, data).min(1).values
    assert distance.max() < 1e-3


def test_pure_noise_says_only_the_mean():
    node = Grid.from_times(FlowMatching(), [1.0, 0.0]).nodes[0]
    mean = RNG.normal(size=3)
    got = exact.gaussian(mean, std=0.5)(torch.randn(4, 3, dtype=torch.float64), node)
    np.testing.assert_allclose(got, np.tile(mean, (4, 1)))


def test_bad_covariances_are_refused():
    with pytest.raises(ValueError, match="negative eigenvalue"):
        exact.gaussian([0.0, 0.0], cov=[[1, 0], [0, -1]])
    with pytest.raises(ValueError, match="symmetric"):
        exact.gaussian([0.0, 0.0], cov=[[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="positive numbers"):
        exact.mixture([[0.0], [1.0]], [1.0, -1.0], std=1)
    with pytest.raises(ValueError, match="either cov or std"):
        exact.mixture([[0.0]])


def test_samples_at_their_own_nodes():
    """One batch of several levels is as good as one by one."""
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(2, 4, 4))
    full = exact.mixture(rng.normal(size=(2, 4)), [0.3, 0.7], cov=factors @ factors.swapaxes(1, 2))
    round_ = exact.mixture(rng.normal(size=(2, 4)), std=[0.3, 0.6])
    nodes = fewstep.grid(VPLinear(), 6, "lam").nodes[1:3]
    x = torch.from_numpy(rng.normal(size=(2, 2, 2)))
    for denoiser in (full, round_):
        alone = torch.cat([denoiser(x[i : i + 1], node) for i, node in enumerate(nodes)])
        torch.testing.assert_close(denoiser(x, several(nodes, x)), alone, rtol=1e-12, atol=1e-12)
