from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from fewstep.discrete import (
    Absorb,
    Geometric,
    JumpTable,
    LogLinear,
    Trajectory,
    Uniform,
    build,
    log_probability,
    nodes,
    output_law,
    record,
    sample,
    scores,
    start,
    transition,
)
from fewstep.discrete.chains import countdown, dirichlet, sequences
from fewstep.discrete.solvers import SOLVERS
from hypothesis import given
from hypothesis import strategies as st

CHAIN = dirichlet(3, 3, seed=5)
WORLDS = {"absorb": (Absorb(3), LogLinear()), "uniform": (Uniform(3), Geometric(1e-2, 6.0))}


def table_of(world, seed=0, n=3):
    """A table with everything in it: random weights, spreads, anchors, laws and temperatures."""
    generator = torch.Generator().manual_seed(seed)
    weights, spread = torch.rand((2, n, n), generator=generator).tril().double()
    return JumpTable(
        *WORLDS[world],
        nodes(n),
        weights - 0.3 * weights.tril(-1),
        0.5 * spread if world == "uniform" else torch.zeros(n, n),
        beta=0.5 + torch.rand(n, generator=generator),
        anchor=(0, 0, *range(1, n - 1)),
        law=("linear", "exponential", "single")[:n],
    )


def row_by_hand(table, n, states, log_scores, b, i):
    """The law of one site, as the docstring of JumpTable says it."""
    s = table.kernel.states
    law = [1 / s] * s if isinstance(table.kernel, Uniform) else [0] * s + [1]
    anchor = int(states[table.anchor[n]][b, i])
    h = [0.0] * s
    for v in range(s):
        for k in range(n + 1):
            u = int(states[k][b, i])
            ratio = [1.0 if w == u else math.exp(log_scores[k][b, i, w]) for w in range(s)]
            if v != u:
                w, spread = float(table.weights[n, k]), float(table.spread[n, k])
                h[v] += law[u] * (w * ratio[v] - spread * sum(ratio) / s)
        h[v] = max(h[v], 0.0) if v != anchor and law[anchor] > 0 else 0.0
    total = sum(h)
    jump = {
        "linear": min(total, 1.0),
        "exponential": 1 - math.exp(-total),
        "single": total * math.exp(-total),
    }[table.law[n]]
    if n == table.nfe - 1 and table.time[-1] == 0 and anchor == s:
        jump = 1.0
    powers = [each ** float(table.beta[n]) if each > 0 else 0.0 for each in h]
    if not any(powers):
        powers = [1.0] * s
    found = [jump * each / sum(powers) for each in powers] + [0.0] * (len(law) - s)
    found[anchor] += 1 - jump
    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_is_what_the_formula_says(world, seed):
    table = table_of(world, seed)
    generator = torch.Generator().manual_seed(seed)
    states = {
        k: torch.randint(table.kernel.vocabulary, (5, 4), generator=generator) for k in range(3)
    }
    log_scores = {k: torch.randn((5, 4, 3), generator=generator).double() for k in range(3)}
    for n in range(3):
        found = transition(table, n, states, log_scores)
        for b, i in itertools.product(range(5), range(4)):
            expected = row_by_hand(table, n, states, log_scores, b, i)
            assert found[b, i].tolist() == pytest.approx(expected, abs=1e-12)


@given(
    world=st.sampled_from(sorted(WORLDS)),
    name=st.sampled_from(sorted(SOLVERS)),
    phi=st.floats(1e-3, 1e3),
    beta=st.floats(1e-2, 30),
    spread=st.floats(0, 60),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_rows_are_laws_for_any_hazard(world, name, phi, beta, spread, seed, dtype):
    table = build(name, *WORLDS[world], nodes(4)).scaled(torch.full((4,), phi))
    table = replace(table, beta=torch.full((4,), beta))
    generator = torch.Generator().manual_seed(seed)
    states = {
        k: torch.randint(table.kernel.vocabulary, (3, 5), generator=generator) for k in range(4)
    }
    log_scores = {
        k: spread * torch.randn((3, 5, 3), generator=generator).to(dtype) for k in range(4)
    }
    log_scores[3][0] = -torch.inf
    for n in range(4):
        law = transition(table, n, states, log_scores)
        assert (law >= 0).all()
        torch.testing.assert_close(law.sum(-1), torch.ones(3, 5).to(law), rtol=1e-5, atol=1e-5)
        if n == 3:
            assert not law[..., 3:].any()


def test_unclamped_euler_would_not_be_a_law():
    """What SEDD's code does: the diagonal is what is left, below 0 for a large step."""
    table = build("euler", *WORLDS["absorb"], nodes(2)).scaled([3.0, 3.0])
    x = torch.full((1, 3), 3)
    log_s = CHAIN.log_score(table.kernel)(x, table.node(0))
    assert float(1 - table.weights[0, 0] * log_s[0, 0].exp().sum()) < 0
    law = transition(table, 0, {0: x}, {0: log_s})
    assert law[0, 0, 3] == 0
    torch.testing.assert_close(law[0, 0, :3], log_s[0, 0].softmax(-1))


@pytest.mark.parametrize("world", WORLDS)
def test_samples_follow_the_pushed_forward_law(world):
    table = table_of(world)
    log_score = CHAIN.log_score(table.kernel)
    seeds, code = range(20000), torch.tensor([9, 3, 1])
    x = sample(log_score, table, start(table, 3, seeds), seeds)
    found = (x @ code).bincount(minlength=27) / len(x)
    law = output_law(log_score, table, 3)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    other = output_law(log_score, replace(table, beta=2 * table.beta), 3)
    # Chi-squared of 26 degrees of freedom: 66 in one of 20,000.
    ours, theirs = (float(((found - p).square() / p).sum()) * len(x) for p in (law, other))
    assert ours < 66 < theirs


@pytest.mark.parametrize("world", WORLDS)
def test_a_sample_does_not_depend_on_its_batch(world):
    table = build("theta-trapezoidal", *WORLDS[world], nodes(6))
    log_score, seeds = CHAIN.log_score(table.kernel), [5, 9, 2**63, 0, 7]
    whole = sample(log_score, table, start(table, 3, seeds), seeds)
    for part in ([7], [0, 9], [2**63, 5, 7]):
        alone = sample(log_score, table, start(table, 3, part), part)
        assert torch.equal(alone, whole[[seeds.index(seed) for seed in part]])
    many = sample(log_score, table, start(table, 3, range(64)), range(64))
    assert len(many.unique(dim=0)) > 5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 7])
def test_the_network_is_asked_nfe_times_denoising_included(name, nfe):
    for kernel, noise in WORLDS.values():
        table, asked = build(name, kernel, noise, nodes(nfe)), []
        log_score = CHAIN.log_score(kernel)

        def counted(x, node, asked=asked, log_score=log_score):
            asked.append(float(node.time))
            return log_score(x, node)

        x = sample(counted, table, start(table, 3, [1, 2]), [1, 2])
        assert len(asked) == table.nfe == nfe
        assert asked == sorted(asked, reverse=True)
        assert asked[-1] > 0
        assert (x < 3).all()


@pytest.mark.parametrize("world", WORLDS)
def test_probabilities_of_all_trajectories_add_up_to_the_output_law(world):
    table = table_of(world)
    chain = dirichlet(3, 2, seed=1)
    log_score, v = chain.log_score(table.kernel), table.kernel.vocabulary
    every = sequences(v, 2)
    paths = sequences(len(every), 2 if world == "absorb" else 3)
    # Absorbing: the first row is from all masks. Its paths have three states more, in turn.
    total = torch.zeros(len(every), dtype=torch.float64)
    firsts = [len(every) - 1] if world == "absorb" else range(len(every))
    for first, last in itertools.product(firsts, range(len(every))):
        middle = paths if paths.shape[1] == 2 else paths[paths[:, 0] == first, 1:]
        codes = [torch.full((len(middle),), first), *middle.T, torch.full((len(middle),), last)]
        states = tuple(every[code] for code in codes)
        visited = tuple(log_score(x, table.node(k)) for k, x in enumerate(states[:-1]))
        steps = log_probability(table, Trajectory(states, visited))
        assert steps.shape == (3, len(middle))
        total[last] += steps.sum(0).exp().sum() / len(firsts)
    expected = output_law(log_score, table, 2)
    torch.testing.assert_close(total[(every < 3).all(1)], expected, rtol=1e-9, atol=1e-12)


def test_a_record_is_the_run():
    table = table_of("uniform")
    log_score, seeds = CHAIN.log_score(table.kernel), [1, 2, 3, 4]
    x = start(table, 3, seeds)
    run = record(log_score, table, x, seeds)
    assert len(run.states) == 4
    assert len(run.log_scores) == 3
    assert torch.equal(run.states[0], x)
    assert torch.equal(run.states[-1], sample(log_score, table, x, seeds))
    for k, (state, log_s) in enumerate(zip(run.states, run.log_scores, strict=False)):
        torch.testing.assert_close(log_s, log_score(state, table.node(k)))
    assert log_probability(table, run).isfinite().all()


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_of_the_output_law_are_finite_differences(world):
    """In hazards, temperatures and times, at rows that are clamped at places, too."""
    kernel, noise = WORLDS[world]
    chain = countdown(3, 2)

    def loss(numbers):
        times = torch.cat([torch.ones(1), 1 - numbers[:2].cumsum(0), torch.zeros(1)])
        table = build("theta-trapezoidal", kernel, noise, times)
        table = replace(table.scaled(numbers[2:5]), beta=numbers[5:8])
        law = output_law(chain.log_score(kernel), table, 2)
        return -(chain.law() * law.log()).sum()

    point = torch.tensor([0.3, 0.4, 0.8, 0.9, 1.1, 1.2, 0.9, 1.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (point.requires_grad_(),), eps=1e-6, atol=1e-6)


def test_bad_states_and_scores_are_refused():
    table = build("euler", *WORLDS["absorb"], nodes(2))
    log_score = CHAIN.log_score(table.kernel)
    with pytest.raises(ValueError, match=r"must be tokens \[B, L\], got torch.float32"):
        sample(log_score, table, torch.zeros(2, 3), [1, 2])
    with pytest.raises(ValueError, match=r"0 to 3 .* got 0 to 4"):
        sample(log_score, table, torch.tensor([[0, 4, 1]]), [1])
    with pytest.raises(ValueError, match=r"shape \[1, 3, 4\], expected \[1, 3, 3\]"):
        sample(lambda x, node: torch.zeros(1, 3, 4), table, torch.full((1, 3), 3), [1])
    with pytest.raises(ValueError, match="2 seeds for a batch of 1"):
        sample(log_score, table, torch.full((1, 3), 3), [1, 2])


def test_a_float32_score_is_enough_in_almost_pure_noise():
    """Tweedie's weights are 1e13 there, and scores differ from 1 by as little."""
    table = build("tweedie", Uniform(3), Geometric(1e-4, 30.0), nodes(2))
    x, node = sequences(3, 3), table.node(0)
    rest = CHAIN.rest(table.kernel, x, node.total)
    laws = [
        transition(table, 0, {0: x}, {0: scores.uniform(each, x, node.total)})
        for each in (rest, rest.float())
    ]
    assert laws[1].dtype == torch.float32
    torch.testing.assert_close(laws[1].double(), laws[0], rtol=1e-5, atol=1e-6)
    # They say something: the jump goes where the chain would have it.
    assert float(laws[0].std(-1).min()) > 0.01
