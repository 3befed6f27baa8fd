"""Along the closed form of normal data: a flow, exact, and as near as its moments are right."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import exact
from fewstep.samplers.teleport import beginning, gaussian_flow, skip_time, teleport
from fewstep.schedules import EDM, VPLinear
from scipy.integrate import solve_ivp

from .problems import SCHEDULES

RNG = np.random.default_rng(0)
DIM = 8
ROOT = RNG.normal(size=(DIM, DIM))
MEAN, COV = RNG.normal(size=DIM), ROOT @ ROOT.T / DIM
NORMAL = exact.gaussian(MEAN, COV)


def nodes(law, *times):
    return fewstep.Grid.from_times(law, [law.t_max, *times]).nodes


def noised(node, count=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return node.sigma * torch.randn(count, DIM, generator=generator, dtype=torch.float64)


def at_lam(law, *lams):
    return [float(law.time(lam)) for lam in lams]


@pytest.mark.parametrize("name", ["edm", "vp-linear", "flow"])
def test_it_solves_the_probability_flow(name):
    """Of dx/dlam, with eps = (x - alpha D) / sigma, by an integrator that knows nothing of it."""
    law = SCHEDULES[name]
    source, target = nodes(law, *at_lam(law, -2.0, 0.5))[1:]
    x = noised(source, 1)

    def slope(_, state, lam):
        node = nodes(law, *at_lam(law, lam))[1]
        y = torch.from_numpy(state)[None] * node.alpha
        eps = (y - node.alpha * NORMAL(y, node)) / node.sigma
        # x / alpha = x0 + nsr eps, and d nsr / d lam = -nsr.
        return -(node.sigma / node.alpha) * eps[0].numpy()

    end = solve_ivp(
        lambda lam, state: slope(None, state, lam),
        (-2.0, 0.5),
        (x[0] / source.alpha).numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    ).y[:, -1]
    found = gaussian_flow(NORMAL, x, source, target)[0] / target.alpha
    np.testing.assert_allclose(found, end, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_a_flow(name):
    """There and back again, and in two ways at once; nowhere at all, bit by bit."""
    law = SCHEDULES[name]
    first, middle, last = nodes(law, *at_lam(law, -1.0, 1.0))
    x = noised(first)
    once = gaussian_flow(NORMAL, x, first, last)
    twice = gaussian_flow(NORMAL, gaussian_flow(NORMAL, x, first, middle), middle, last)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)
    back = gaussian_flow(NORMAL, once, last, first)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11 * max(first.sigma, 1))
    single = x.float()
    assert gaussian_flow(NORMAL, single, middle, middle) is single


def test_few_directions_and_a_tail_are_the_whole():
    values, vectors = np.linalg.eigh(COV)
    first, last = nodes(EDM(), *at_lam(EDM(), -0.5))
    x = noised(first).reshape(5, 2, 4)
    for tail in (0.0, 0.3):
        low = np.where(np.arange(DIM) < 5, tail, values)
        whole = exact.gaussian(MEAN, vectors @ np.diag(low) @ vectors.T)
        thin = exact.low_rank_mixture(
            MEAN[None], [1.0], vectors[None, :, 5:], values[None, 5:], [tail]
        )
        torch.testing.assert_close(
            gaussian_flow(thin, x, first, last),
            gaussian_flow(whole, x, first, last),
            rtol=0,
            atol=1e-12,
        )


def test_the_law_at_the_end_is_that_of_what_it_starts_from():
    """N(0, sigma^2) is not the data's law at sigma: the mean and covariance are a little less."""
    sigma = 2.0
    law = EDM(1e-4, sigma)
    first, last = nodes(law, law.t_zero)
    eye = torch.eye(DIM, dtype=torch.float64)
    shift = gaussian_flow(NORMAL, torch.zeros(1, DIM, dtype=torch.float64), first, last)[0]
    linear = gaussian_flow(NORMAL, eye, first, last) - shift
    left = COV @ np.linalg.inv(COV + sigma**2 * np.eye(DIM))
    values, vectors = np.linalg.eigh(left)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(shift, MEAN - root @ MEAN, atol=1e-12)
    np.testing.assert_allclose(sigma**2 * linear.T @ linear, sigma**2 * left, atol=1e-10)


MEANS = 1.5 * RNG.normal(size=(3, DIM))
THREE = exact.mixture(MEANS, cov=0.2 * COV)
SPREAD = exact.gaussian(MEANS.mean(0), 0.2 * COV + np.cov(MEANS.T, bias=True))
SKIPS = np.array([40.0, 20.0, 10.0, 5.0])


def errors(data):
    """How far teleported states are from the true flow of the mixture, at each sigma."""
    law = EDM(0.002, 80)
    found = []
    for sigma in SKIPS:
        fine = fewstep.grid(law, 200, "karras", end="min", t_min=float(sigma))
        x = noised(fine.nodes[0], 200)
        truth = samplers.sample(THREE, samplers.build("unipc-3", fine), x)
        gap = gaussian_flow(data, x, fine.nodes[0], fine.nodes[-1]) - truth
        found.append(float(gap.square().mean().sqrt()))
    return np.array(found)


def test_the_error_falls_as_the_square_of_the_noise():
    """As published; of mean or covariance that are not right, as the noise or not at all."""
    right, isotropic, centred = (
        errors(each)
        for each in (
            SPREAD,
            exact.gaussian(MEANS.mean(0), std=1.0),
            exact.gaussian(np.zeros(DIM), 0.2 * COV + np.cov(MEANS.T, bias=True)),
        )
    )
    slopes = [np.polyfit(np.log(SKIPS), np.log(each), 1)[0] for each in (right, isotropic, centred)]
    assert slopes[0] < -1.8
    assert -1.5 < slopes[1] < -0.8
    assert slopes[2] > -0.6
    assert (isotropic > 2 * right).all()


def test_a_mixture_goes_along_its_own_score():
    law = EDM(0.002, 80)
    fine = fewstep.grid(law, 200, "karras", end="min", t_min=2.0)
    x = noised(fine.nodes[0], 50)
    truth = samplers.sample(THREE, samplers.build("unipc-3", fine), x)
    target = nodes(law, 2.0)[1]
    found = teleport(THREE, fine.nodes[0])(x, target)
    single = gaussian_flow(SPREAD, x, fine.nodes[0], target)
    near, far = ((each - truth).square().mean().sqrt() for each in (found, single))
    assert near < 0.02 * far
    # Of classes that are told each has its own closed form.
    labels = torch.arange(50) % 3
    found = teleport(THREE, fine.nodes[0], labels)(x, target)
    for label in range(3):
        alone = exact.gaussian(MEANS[label], 0.2 * COV)
        expected = gaussian_flow(alone, x[labels == label], fine.nodes[0], target)
        torch.testing.assert_close(found[labels == label], expected, rtol=1e-9, atol=1e-9)
    # At the beginning there is nothing to go along.
    assert teleport(THREE, fine.nodes[0])(x, fine.nodes[0]) is x


def test_the_rest_of_a_grid_is_a_grid():
    """Steps are dropped, or as many taken on what is left: both start where the noise is less."""
    law = EDM(0.002, 80)
    whole = fewstep.grid(law, 18, "karras", end="min")
    rest = fewstep.grid(law, 14, "karras", end="min", t_max=float(whole.time[4]))
    np.testing.assert_allclose(rest.sigma, whole.sigma[4:], rtol=1e-9)
    assert samplers.build("heun", rest).nfe == samplers.build("heun", whole).nfe - 8
    x = samplers.noise(whole, (DIM,), range(4))
    table = samplers.build("ab-3", rest)
    begun = teleport(SPREAD, whole.nodes[0])
    by_hand = samplers.sample(THREE, table, gaussian_flow(SPREAD, x, whole.nodes[0], rest.nodes[0]))
    assert torch.equal(samplers.sample(THREE, table, x, start=begun), by_hand)


def test_other_shapes_are_refused():
    first, last = nodes(EDM(), *at_lam(EDM(), 0.0))
    with pytest.raises(ValueError, match=r"8 dimensions, and samples of shape \(3,\) have 3"):
        gaussian_flow(NORMAL, torch.zeros(2, 3), first, last)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_skip_is_a_ratio_of_noise_to_signal_on_every_schedule(name):
    """A state is as large as its own schedule says; taken for another it would be times off."""
    law = SCHEDULES[name]
    grid = fewstep.grid(law, 5, "karras", t_max=skip_time(law, 3.0))
    assert grid.nsr[0] == pytest.approx(3.0, rel=1e-9)
    source, first = (fewstep.Grid.from_sigmas([12.0, 3.0], each).nodes[0] for each in (law, EDM()))
    z = torch.randn(5, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = teleport(NORMAL, source)(source.sigma * z, grid.nodes[0])
    expected = teleport(NORMAL, first)(12 * z, nodes(EDM(), 3.0)[1])
    torch.testing.assert_close(start / grid.alpha[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("law", SCHEDULES.values(), ids=SCHEDULES)
def test_skipping_nothing_changes_no_bit(law):
    skip = float(law.nsr(law.t_max))
    assert skip_time(law, skip) == law.t_max
    bare = fewstep.grid(law, 5, "uniform")
    same = fewstep.grid(law, 5, "uniform", t_max=skip_time(law, skip))
    table, source = samplers.build("unipc-3", same), beginning(law)
    x = samplers.noise(source, (DIM,), range(3))
    assert torch.equal(x, samplers.noise(bare, (DIM,), range(3)))
    begun = samplers.sample(THREE, table, x, start=teleport(SPREAD, source.nodes[0]))
    assert torch.equal(begun, samplers.sample(THREE, samplers.build("unipc-3", bare), x))


def test_a_run_cannot_begin_where_there_is_no_noise_like_that():
    for skip in (81.0, 0.001, np.inf):
        with pytest.raises(ValueError, match=r"sigma / alpha is .* has 0.002 to 80"):
            skip_time(EDM(0.002, 80), skip)


def test_published_grids_with_steps_dropped():
    """The rest of the rho = 7 grid of 18 nodes, and what Heun spends on it (Wang, Vastola 2024)."""
    law = EDM(0.002, 80)
    whole = fewstep.grid(law, 18, "karras")
    published = {1: (57.6, 33), 2: (40.8, 31), 4: (19.35, 27), 6: (8.40, 23), 8: (3.26, 19)}
    for dropped, (sigma, nfe) in published.items():
        rest = fewstep.grid(law, 18 - dropped, "karras", t_max=skip_time(law, whole.nsr[dropped]))
        assert rest.sigma[0] == pytest.approx(sigma, rel=2e-3)
        np.testing.assert_allclose(rest.sigma, whole.tail(dropped).sigma, rtol=1e-9)
        assert samplers.build("heun", rest).nfe == nfe


@pytest.mark.parametrize(("name", "variance"), [("ddim", 4.81), ("ddpm", 0.3034)])
def test_boosted_noise_is_remembered_where_the_data_vary(name, variance):
    """N(0, .3), begun at alpha = .05 with 4 times the noise: the flow, and the reverse process."""
    law, v = VPLinear(), 0.3
    lams = np.linspace(np.log(0.05 / (1 - 0.05**2) ** 0.5), float(law.lam(law.t_min)), 4001)
    table = samplers.build(name, fewstep.Grid.from_lams(law, lams))
    node = table.grid.nodes[0]
    noise = torch.full((1, 1), node.sigma, dtype=torch.float64)
    found = float(samplers.boost(4.0)(noise, node)) ** 2
    assert found == pytest.approx(16.0)
    table = table.in_basis("x0")
    for n, here in enumerate(table.grid.nodes[:-1]):
        gain = here.alpha * v / (here.alpha**2 * v + here.sigma**2)
        factor = table.carry[n] + table.weights[n, n] * gain
        found = factor**2 * found + table.noise[n, n] ** 2
    assert found == pytest.approx(variance, rel=5e-3)
