"""Guidance by gradients, where the posterior is known."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import build, exact, guidance, sample
from fewstep.schedules import EDM, FlowMatching, VPLinear

MEANS, STD = [[1.0, -1, 0], [0.5, 2, 1], [-1, 0.3, 2]], [0.3, 0.4, 0.35]
MIXED = exact.mixture(MEANS, [0.5, 0.3, 0.2], std=STD)
LAW = VPLinear()
# Normal data, and one noisy number of them.
MEAN, COV = np.array([0.5, -1.0]), np.array([[1, 0.6], [0.6, 2]])
MATRIX, NOISE, SEEN = np.array([[1.0, 0.5]]), 0.3, 1.2


@pytest.mark.parametrize("law", [LAW, EDM(), FlowMatching(t_min=0.02)], ids=["vp", "edm", "flow"])
def test_the_true_classifier_gives_the_component(law):
    """The score of a component is that of all plus the gradient of its responsibility."""
    grid = fewstep.grid(law, 6, "uniform")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    for node in grid.nodes[:-1]:
        if node.alpha == 0:
            continue
        for j in range(3):
            guided = guidance.classifier(
                MIXED, lambda x, node, j=j: MIXED.log_shares(x, node)[:, j]
            )
            alone = exact.gaussian(MEANS[j], std=STD[j])
            torch.testing.assert_close(guided(x, node), alone(x, node), rtol=1e-9, atol=1e-9)
    off = guidance.classifier(MIXED, lambda x, node: 1 / 0, 0.0)
    assert torch.equal(off(x, node), MIXED(x, node))


def test_pure_noise_has_no_gradient():
    node = fewstep.grid(FlowMatching(), 4, "uniform").nodes[0]
    x = torch.randn(5, 3).double()
    with pytest.raises(ValueError, match="node 0 is pure noise"):
        guidance.classifier(MIXED, lambda x, node: MIXED.log_shares(x, node)[:, 0])(x, node)


def law_of(guided):
    """Mean and covariance of the runs of an affine denoiser, from those of three noises."""
    grid = fewstep.grid(EDM(0.002, 80), 200, "karras")
    x = 80 * torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    ends = sample(guided, build("unipc-3", grid), x).numpy()
    spread = (ends[1:] - ends[0]).T
    return ends[0], spread @ spread.T


def test_the_covariance_of_the_network_gives_the_posterior():
    """Published numbers; the start, noise alone, leaves it off by a part in a hundred."""
    data = exact.gaussian(MEAN, COV)
    matrix, seen = torch.from_numpy(MATRIX), torch.tensor([SEEN])
    mean, cov = law_of(guidance.posterior(data, matrix, seen, NOISE))
    np.testing.assert_allclose(mean, [1.206, -0.118], atol=6e-4)
    gain = COV @ MATRIX.T / (MATRIX @ COV @ MATRIX.T + NOISE**2)
    np.testing.assert_allclose(mean, MEAN + gain[:, 0] * (SEEN - MATRIX @ MEAN), atol=0.01)
    np.testing.assert_allclose(cov, COV - gain @ MATRIX @ COV, atol=0.01)
    pulled = guidance.dps(data, lambda x0: x0 @ matrix.to(x0).T, seen, NOISE)
    mean, cov = law_of(pulled)
    np.testing.assert_allclose(mean, [1.064, 0.364], atol=6e-4)
    np.testing.assert_allclose(cov, [[0.196, -0.363], [-0.363, 0.673]], atol=1e-3)


def test_the_posterior_at_a_node_is_exact_for_normal_data():
    """E[x0 | x, y] by the normal law of (x0, x, y), several observations, one each."""
    rng = np.random.default_rng(0)
    matrix, std = rng.normal(size=(2, 2)), 0.2
    node = fewstep.grid(LAW, 6, "uniform").nodes[2]
    x, y = rng.normal(size=(4, 2)), rng.normal(size=(4, 2))
    found = guidance.posterior(
        exact.gaussian(MEAN, COV), torch.from_numpy(matrix), torch.from_numpy(y), std
    )(torch.from_numpy(x), node)
    a = np.vstack([node.alpha * np.eye(2), matrix])
    noise = np.diag([node.sigma**2] * 2 + [std**2] * 2)
    gain = COV @ a.T @ np.linalg.inv(a @ COV @ a.T + noise)
    told = np.hstack([x, y]) - a @ MEAN
    np.testing.assert_allclose(found, MEAN + told @ gain.T, atol=1e-10)


def test_at_scale_0_nothing_is_measured():
    x = torch.randn(3, 2).double()
    data, node = exact.gaussian(MEAN, COV), fewstep.grid(LAW, 4, "uniform").nodes[1]
    off = guidance.dps(data, lambda x0: 1 / 0, torch.zeros(1), 0.1, 0.0)
    assert torch.equal(off(x, node), data(x, node))
