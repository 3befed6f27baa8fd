"""Best of several, particles and best children, where the laws are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.samplers import build, exact, guidance
from fewstep.schedules import grid
from fewstep.steering import Chain, best_of, smc, svdd, systematic
from fewstep.steering.weights import effective, log_mean_exp

from .chains import LAW, LOG_Z, exact_chain, reward


def test_the_chain_is_normal_at_every_node():
    chain, count = exact_chain(3), 4000
    state = chain.begin(range(count))
    # Its noise is that of sigma alone; the data's part of the first node is missing.
    for level in range(chain.depth):
        state = chain.move(state, level, [i + 10**6 * level for i in range(count)])
        assert float(state.x.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    assert chain.meter.evaluations == count * 3


@pytest.mark.parametrize(("tries", "mean", "deviation"), [(4, 1.029, 0.701), (16, 1.766, 0.546)])
def test_the_best_of_several_is_the_law_of_a_maximum(tries, mean, deviation):
    count = 500
    found = best_of(exact_chain(1), lambda x: x[:, 0], tries, count=count, seed=1)
    assert found.x.mean().item() == pytest.approx(mean, abs=4 * deviation / count**0.5)
    assert found.x.std().item() == pytest.approx(deviation, rel=0.15)
    assert found.evaluations == tries * count
    assert found.reward_calls == tries * count
    assert np.array_equal(found.rewards, found.x[:, 0].numpy())
    assert float(found.best) == found.rewards.max()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.1])
def test_particles_find_the_tilted_law(threshold):
    """N(1.5, 1), and the normaliser; also where nothing is drawn anew, and where always."""
    found = smc(exact_chain(10), reward, 1024, threshold=threshold, seed=3)
    wide = 0.5 if threshold == 0 else 0.15
    assert found.weights.sum() == pytest.approx(1)
    assert found.weights @ found.x[:, 0].numpy() == pytest.approx(1.5, abs=wide)
    assert found.log_z == pytest.approx(LOG_Z, abs=2 * wide)
    # Asked once at each node: what was predicted is not predicted again.
    assert found.evaluations == 1024 * 10
    assert found.reward_calls == 1024 * 10


@pytest.mark.parametrize("potential", ["max", "add"])
def test_potentials_that_pull_ahead_are_corrected_in_the_end(potential):
    """They go too far on the way: of a weak reward, weights bring the law back."""
    chain = exact_chain(6, (0, 2, 4))
    runs = [smc(chain, reward, 512, potential=potential, scale=0.3, seed=s) for s in range(12)]
    means = [run.weights @ run.x[:, 0].numpy() for run in runs]
    assert np.mean(means) == pytest.approx(0.45, abs=0.06)
    z = [np.exp(run.log_z - 0.45**2 / 2) for run in runs]
    assert np.mean(z) == pytest.approx(1, abs=3 * np.std(z) / 12**0.5)


def test_the_normaliser_is_right_in_the_mean():
    """For few particles, too."""
    chain = exact_chain(4)
    for twisted in (False, True):
        found = [
            np.exp(smc(chain, reward, 32, seed=s, twisted=twisted).log_z - LOG_Z) for s in range(40)
        ]
        assert np.mean(found) == pytest.approx(1, abs=3 * np.std(found) / 40**0.5)


@pytest.mark.slow
def test_published_numbers_of_particles():
    """E[Z] = Z within three deviations at 1024 particles, and the mean 1.494 +- .01."""
    runs = [smc(exact_chain(10), reward, 1024, seed=s) for s in range(40)]
    z = np.exp([run.log_z - LOG_Z for run in runs])
    assert z.mean() == pytest.approx(1, abs=3 * z.std() / 40**0.5)
    means = [run.weights @ run.x[:, 0].numpy() for run in runs]
    assert np.mean(means) == pytest.approx(1.494, abs=0.01 + 3 * np.std(means) / 40**0.5)


def test_twisted_particles_are_moved_and_weighed_back():
    """Of a linear reward the gradient is right, so that weights stay even; tempered, too."""
    chain = exact_chain(10)
    bare = smc(chain, reward, 512, threshold=0.0, seed=5)
    moved = smc(chain, reward, 512, threshold=0.0, twisted=True, seed=5)
    assert effective(np.log(moved.weights)) > 4 * effective(np.log(bare.weights))
    assert moved.weights @ moved.x[:, 0].numpy() == pytest.approx(1.5, abs=0.15)
    slowly = smc(chain, reward, 512, twisted=True, temper=lambda n: n / 10, seed=5)
    assert slowly.weights @ slowly.x[:, 0].numpy() == pytest.approx(1.5, abs=0.2)
    with pytest.raises(ValueError, match="elsewhere than in the first row"):
        smc(exact_chain(10, (0, 4)), reward, 8, twisted=True)
    with pytest.raises(ValueError, match="has no gradient"):
        smc(chain, lambda x: x[:, 0].detach(), 8, twisted=True)
    with pytest.raises(ValueError, match="diff, max, add"):
        smc(chain, reward, 8, potential="sum")


def test_rewards_below_zero_choose_among_particles():
    """Logarithms of probabilities are; their maximum so far is not 0."""
    chain = exact_chain(6)

    def run(**options):
        return smc(chain, lambda x: -3 * (x[:, 0] - 2) ** 2, 256, seed=1, **options)

    bare = run(threshold=0.0)
    for potential in ("diff", "max", "add"):
        found = run(potential=potential)
        assert not torch.equal(found.x, bare.x)
        # Among those that come near, weighed or not.
        assert found.x.mean() > bare.x.mean() + 0.5


def test_denoisers_that_draw_have_streams_of_their_own_for_every_child():
    """And what remembers goes on remembering, twisted or not; no graphs are left."""
    normal, seen = exact.gaussian([0.0], std=1.0), []

    def rule(ask):
        count = ask.memory.get("count", torch.zeros(len(ask.x)))
        seen.append((count.clone(), ask.streams([], "mine")))
        ask.remember("count", count + 1)
        return ask(normal) + learned * 0

    learned = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    plain = exact_chain(4)
    chain = Chain(plain.table, lambda size: guidance.Guided(rule), (1,), dtype=torch.float64)
    for twisted in (False, True):
        seen.clear()
        found = smc(chain, reward, 5, twisted=twisted, threshold=0.0)
        assert [count.tolist() for count, _ in seen] == [[n] * 5 for n in range(4)]
        assert all(len({*streams}) == 5 for _, streams in seen)
        assert not found.x.requires_grad
    seen.clear()
    state = chain.begin([7])
    chain.move(state.repeat(3), 0, [1, 2, 3])
    assert len({*seen[0][1]}) == 3


def test_the_best_child_goes_on():
    """One level, many children: the law of a maximum; at a great temperature a plain draw."""
    chain = exact_chain(1)
    found = svdd(chain, lambda x: x[:, 0], 16, count=500, seed=1)
    assert found.x.mean().item() == pytest.approx(1.766, abs=4 * 0.546 / 500**0.5)
    plain = svdd(chain, lambda x: x[:, 0], 4, count=500, temperature=1e6, seed=1)
    assert plain.x.mean().item() == pytest.approx(0, abs=4 / 500**0.5)
    deep = exact_chain(5)
    better = svdd(deep, reward, 4, count=100, seed=2)
    assert better.rewards.mean() > best_of(deep, reward, 4, count=100).rewards.mean()


def test_multistep_solvers_keep_their_history_with_each_particle():
    """A permutation of particles in the middle changes nothing but their order."""
    mixed = exact.mixture([[1.0, -1], [-1, 0.5]], std=0.3)
    table = build("sde-dpmpp-3m", grid(LAW, 8, "uniform", end="min"))
    chain = Chain(table, lambda size: mixed, (2,), (0, 3, 6), dtype=torch.float64, batch_size=3)
    seeds = [11, 12, 13, 14, 15]
    state = chain.move(chain.begin(seeds), 0, seeds)
    _, ahead = chain.predict(state)
    straight = chain.move(chain.move(state, 1, seeds), 2, seeds).x
    turned = chain.move(ahead.take([4, 3, 2, 1, 0]), 1, seeds[::-1])
    torch.testing.assert_close(chain.move(turned, 2, seeds[::-1]).x.flip(0), straight)
    assert [chain.calls(level) for level in range(3)] == [3, 3, 2]


def test_what_cannot_be_driven_is_said():
    law = grid(LAW, 4, "uniform")
    normal = exact.gaussian([0.0], std=1.0)
    with pytest.raises(ValueError, match="ddim draws no noise between nodes 0 and 4"):
        Chain(build("ddim", law), lambda size: normal, (1,))
    with pytest.raises(ValueError, match="ddpm draws no noise between nodes 3 and 4"):
        Chain(build("ddpm", law), lambda size: normal, (1,), (0, 3))
    with pytest.raises(ValueError, match="levels must rise"):
        exact_chain(5, (3, 1))
    # A last step without noise belongs to the one before it; what is before is the beginning.
    chain = Chain(build("ddpm", law), lambda size: normal, (1,))
    assert (chain.levels, chain.ends) == ((0, 1, 2), (1, 2, 4))
    late = exact_chain(5, (2, 4))
    assert late.begin([1]).step == 2
    with pytest.raises(ValueError, match="one number a sample"):
        best_of(exact_chain(2), lambda x: x, 2)
    for bad in (float("nan"), -float("inf")):
        with pytest.raises(ValueError, match=f"a reward is {bad}: rewards are finite"):
            best_of(exact_chain(2), lambda x, bad=bad: x[:, 0] * 0 + bad, 2)


def test_resampling_is_as_even_as_it_can_be():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(10))
    counts = np.zeros(10)
    for u in np.linspace(0, 1, 1000, endpoint=False):
        each = np.bincount(systematic(weights, u), minlength=10)
        assert (np.abs(each - 10 * weights) < 1).all()
        counts += each / 1000
    np.testing.assert_allclose(counts, 10 * weights, atol=0.02)
    assert systematic(np.array([0.5, 0.5]), 0.999999) == [0, 1]


def test_means_of_exponentials_between_mean_and_maximum():
    values = np.array([0.3, -1.0, 2.0])
    assert log_mean_exp(values, np.inf) == 2.0
    assert log_mean_exp(values, 0.0) == pytest.approx(values.mean())
    assert log_mean_exp(values, 1e-12) == pytest.approx(values.mean(), abs=1e-9)
    assert log_mean_exp(values, 1e6) == pytest.approx(2.0, abs=1e-5)
    assert log_mean_exp(values, 2.0) == pytest.approx(np.log(np.exp(2 * values).mean()) / 2)
    assert effective(np.log([0.5, 0.5, 1e-30])) == pytest.approx(2)
