"""l, s and b of networks whose own are known in closed form, and files of them."""

from __future__ import annotations

from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import Batch, ModelStatistics, estimate_statistics, exact
from fewstep.schedules import EDM, FlowMatching, Grid, VPDiscrete, VPLinear, betas
from torch import nn

LAW = VPLinear()
LAMS = np.linspace(-4, 4, 161)


def levels(lams):
    grid = Grid.from_lams(LAW, [*lams, np.inf])
    return grid.alpha[:-1, None], grid.sigma[:-1, None]


def draw(mean, cov, count, seed=0):
    data = np.random.default_rng(seed).multivariate_normal(mean, cov, count)
    return torch.from_numpy(data)


def test_normal_data_of_independent_pixels():
    """sigma eps = l (x - alpha mean), so that f = -l mean does not vary: s = 0, b = -l' mean."""
    mean, var = np.array([0.5, -1.0, 2.0]), np.array([0.2, 1.0, 0.0])
    denoiser = exact.gaussian(mean, np.diag(var))
    batches = [Batch(denoiser, draw(mean, np.diag(var), 8), range(8))]
    found = estimate_statistics(batches, LAW, LAMS)
    alpha, sigma = levels(LAMS)
    l = sigma**2 / (alpha**2 * var + sigma**2)
    np.testing.assert_allclose(found.l, l, atol=1e-12)
    np.testing.assert_allclose(found.s, 0, atol=1e-9)
    # Along lam, l' = -2 l (1 - l); theirs is taken along the nodes.
    slope = np.gradient(l, LAMS, axis=0, edge_order=2)
    noisy = found.b + slope * mean
    # What l' is off by is multiplied with x / alpha.
    off = np.abs(slope + 2 * l * (1 - l)).max()
    assert off < 2e-3
    assert np.abs(noisy).max() < 40 * off
    # And b itself to second order in their distance.
    errors = []
    for every in (8, 4):
        coarse = estimate_statistics(batches, LAW, LAMS[::every])
        errors.append(np.abs(coarse.b - (2 * l * (1 - l) * mean)[::every])[2:-2].max())
    assert 3 < errors[0] / errors[1] < 5


def test_normal_data_with_correlations():
    """x0 = mean + G (x - alpha mean): moments of linear forms of a normal law."""
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(3, 3))
    mean, cov = rng.normal(size=3), factor @ factor.T / 3
    count = 4000
    batches = [Batch(exact.gaussian(mean, cov), draw(mean, cov, count), range(count))]
    lams = np.linspace(-1.5, 1.5, 31)
    found = estimate_statistics(batches, LAW, lams)

    def linear(lam):
        """alpha, sigma and G; x0' = dG y + G y', with y = x - alpha mean along the flow."""
        alpha, sigma = (value[0, 0] for value in levels([lam]))
        return alpha, sigma, alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(3))

    for k in (0, 10, 20, 30):
        alpha, sigma, gain = linear(lams[k])
        before, after = linear(lams[k] - 1e-4), linear(lams[k] + 1e-4)
        slope_gain = (after[2] - before[2]) / 2e-4
        rate = (after[0] - before[0]) / 2e-4 / alpha
        # y' = rate y - (y - alpha G y): the flow of the centred state.
        flow = (rate - 1) * np.eye(3) + alpha * gain
        l = 1 - alpha * np.diag(gain)
        slopes = [1 - g[0] * np.diag(g[2]) for g in (before, after)]
        slope = (slopes[1] - slopes[0]) / 2e-4
        spread = alpha**2 * cov + sigma**2 * np.eye(3)
        f = np.diag(1 - l) / alpha - gain
        moved = slope_gain + gain @ flow
        f_after = -np.diag(slope + 1 - l) / alpha + np.diag(1 - l) @ gain - moved
        s = np.diag(f @ spread @ f_after.T) / np.diag(f @ spread @ f.T)
        # Of f and f', x = y + alpha mean leaves -l mean and -l' mean.
        b = -slope * mean + s * l * mean
        np.testing.assert_allclose(found.l[k], l, atol=0.03)
        np.testing.assert_allclose(found.s[k], s, atol=0.12)
        np.testing.assert_allclose(found.b[k], b, atol=0.15)


class Net(nn.Module):
    """What a U-Net is made of: convolutions, a group norm, attention, and a label."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.last = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, label):
        h = self.first(x) * torch.cos(label / 300)[:, None, None, None]
        # Another layout, as behind some convolutions.
        h = torch.tanh(self.norm(h.to(memory_format=torch.channels_last)))
        q = h.flatten(2).transpose(1, 2)[:, None]
        h = h + nn.functional.scaled_dot_product_attention(q, q, q)[:, 0].transpose(1, 2).view(
            h.shape
        )
        return self.last(h)


def network(dtype=torch.float64, law=None):
    law = law or VPDiscrete(betas())
    return law, fewstep.samplers.denoiser(Net().to(dtype), law)


def test_derivatives_are_those_of_differences():
    law, denoiser = network()
    double = replace(denoiser, network=lambda x, label: denoiser.network(x, label.double()))
    data = torch.randn(6, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batches = [Batch(double, data, range(6))]
    ours = estimate_statistics(batches, law, 7)
    theirs = estimate_statistics(batches, law, 7, difference=1e-3)
    for name in ("l", "s", "b"):
        a, b = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())
    assert np.abs(ours.l - 1).max() > 1e-3


def test_samples_do_not_depend_on_their_batches():
    law, denoiser = network(torch.float32)
    data = torch.randn(6, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    calls = []
    whole = estimate_statistics([Batch(denoiser, data, range(6))], law, 3)
    parts = [Batch(denoiser, data[:2], range(2)), Batch(denoiser, data[2:], range(2, 6))]
    split = estimate_statistics(parts, law, 3, progress=lambda *said: calls.append(said[:2]))
    for name in ("l", "s", "b"):
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), rtol=2e-3, atol=1e-3)
    assert calls == [(k, 6) for k in range(1, 7)]
    assert whole.shape == (1, 5, 5)
    assert whole.meta == {"samples": 6}
    other = estimate_statistics([Batch(denoiser, data, range(1, 7))], law, 3)
    assert np.abs(other.l - whole.l).max() > 1e-6


def test_files_come_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(3, 4, 1, 2, 2)).astype(np.float32)
    ours = ModelStatistics(np.sort(rng.normal(size=4)), *arrays, EDM(0.01, 50.0), {"samples": 5})
    path = tmp_path / "new" / "statistics.safetensors"
    ours.save(path)
    again = ModelStatistics.load(path)
    for name in ("lams", "l", "s", "b"):
        np.testing.assert_array_equal(getattr(again, name), getattr(ours, name))
    assert (again.schedule, again.meta) == (ours.schedule, ours.meta)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"statistics.safetensors: no statistics"):
        ModelStatistics.load(path)


def test_bad_statistics_are_refused():
    with pytest.raises(ValueError, match="rising"):
        ModelStatistics([1, 0], *np.zeros((3, 2)))
    with pytest.raises(ValueError, match="shapes"):
        ModelStatistics([0, 1], np.zeros(2), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="b is not finite"):
        ModelStatistics([0, 1], np.zeros(2), np.zeros(2), [0, np.nan])
    nothing = [Batch(exact.gaussian([0.0], std=1.0), torch.zeros(0, 1), [])]
    with pytest.raises(ValueError, match="no data"):
        estimate_statistics(nothing, LAW)
    some = [Batch(exact.gaussian([0.0], std=1.0), torch.zeros(1, 1), [0])]
    with pytest.raises(ValueError, match="name the lams"):
        estimate_statistics(some, FlowMatching(), 3)


def test_a_file_that_is_not_there_is_one_to_be_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fewstep search v3 --out .*mnist-v3"):
        ModelStatistics.load(tmp_path / "mnist-v3")
