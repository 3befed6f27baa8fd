from __future__ import annotations

import math

import pytest
import torch
from fewstep.discrete import (
    Absorb,
    Geometric,
    LogLinear,
    Uniform,
    build,
    divergence,
    nodes,
    output_law,
    record,
    start,
)
from fewstep.discrete.chains import bigrams, countdown, sequences
from fewstep.discrete.executor import log_probability
from fewstep.distill.lsd.jumps import (
    LearnedJumps,
    best_times,
    earlier,
    hamming,
    mmd_loss,
    path_loss,
    ratios,
    relaxed,
    score_loss,
    score_weights,
    spectrum,
)
from fewstep.eval.text import NGrams, score_text

CHAIN, KERNEL, NOISE = countdown(3, 4), Absorb(3), LogLinear()
SCORE = CHAIN.log_score(KERNEL)


def kl(table, chain=CHAIN, score=SCORE):
    return divergence(chain.law(), output_law(score, table, chain.length))


def runs(table, count, first=0, score=SCORE, length=4):
    seeds = range(first, first + count)
    return record(score, table, start(table, length, seeds), seeds)


@pytest.mark.parametrize("base", ["euler", "exp-euler", "tweedie", "theta-trapezoidal"])
def test_before_any_learning_it_is_the_solver(base):
    times = nodes(5)
    found = LearnedJumps(base, KERNEL, NOISE, times, ("phi", "beta", "power", "times")).table()
    plain = build(base, KERNEL, NOISE, times)
    torch.testing.assert_close(found.time, plain.time, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.weights, plain.weights, rtol=1e-12, atol=1e-14)
    assert torch.equal(found.beta, plain.beta)
    assert torch.equal(found.power, plain.power)


def test_numbers_do_what_they_say():
    module = LearnedJumps("euler", KERNEL, NOISE, nodes(4), ("phi", "beta", "power", "times"))
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.tensor([0.1, -0.3, 0.2, 0.4]))
    found = module.table()
    plain = build("euler", KERNEL, NOISE, found.time)
    factors = torch.tensor([0.1, -0.3, 0.2, 0.4], dtype=torch.float64).exp()
    torch.testing.assert_close(found.weights, factors[:, None] * plain.weights)
    torch.testing.assert_close(found.beta, factors)
    torch.testing.assert_close(found.power, factors)
    # Gaps are shares: those of equal ones times the factors.
    torch.testing.assert_close(-torch.diff(found.time), factors / factors.sum())
    assert sum(p.numel() for p in LearnedJumps("euler", KERNEL, NOISE, nodes(4)).parameters()) == 8


def test_hazards_and_times_are_the_same_freedom_on_an_absorbing_kernel():
    """With exact scores Euler's rows are dt / t: what phi can do, times can do as well."""
    best = []
    for what in ("phi", "times"):
        module = LearnedJumps("euler", KERNEL, NOISE, nodes(4), (what,))
        optimizer = torch.optim.LBFGS(
            module.parameters(), max_iter=60, line_search_fn="strong_wolfe"
        )

        def loss(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            value = kl(module())
            value.backward()
            return value

        optimizer.step(loss)
        best.append(float(kl(module.table())))
    assert best[0] == pytest.approx(best[1], abs=1e-4)
    assert best[0] < 0.95 * float(kl(build("euler", KERNEL, NOISE, nodes(4))))


def test_kernels_of_sequences():
    x, y = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 1, 1, 1], [0, 1, 2, 0]])
    found = hamming((0.25, 1.0))(x, y)
    truth = [math.exp(-2) + math.exp(-2 / 4), 2.0]
    assert found[0].tolist() == pytest.approx(truth)
    # Of x: 01, 12, 20; of y: 01, 11, 11 and those of x.
    assert spectrum(2, 3)(x, y)[0].tolist() == pytest.approx([1 / 9, 3 / 9])


@pytest.mark.slow
def test_the_score_function_has_the_gradient_of_the_discrepancy():
    chain, kernel = countdown(2, 3), Absorb(2)
    score, likeness = chain.log_score(kernel), hamming()
    module = LearnedJumps("euler", kernel, NOISE, nodes(3), ("phi", "beta"))
    every, p = sequences(2, 3), chain.law()
    q = output_law(score, module(), 3)
    gram = likeness(every, every)
    (q @ gram @ q - 2 * (q @ gram @ p)).backward()
    learned = [module.phi, module.beta]
    truth = torch.cat([each.grad.clone() for each in learned])
    real = chain.sample(2**15, torch.Generator().manual_seed(0))
    found = []
    # A batch at a time: their mean is as good as one of all.
    for k in range(64):
        module.zero_grad()
        run = runs(module(), 2**9, k * 2**9, score, 3)
        weights = score_weights(run.states[-1], real[k * 2**9 : (k + 1) * 2**9], likeness)
        (weights * log_probability(module(), run).sum(0)).mean().backward()
        found.append(torch.cat([each.grad.clone() for each in learned]))
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 8
    assert float(torch.cosine_similarity(mean, truth, 0)) > 0.95
    assert ((mean - truth).abs() < 4 * error + 1e-9).all()
    assert float(truth.norm()) > 4 * float(error.norm())


def test_its_descent_leads_towards_the_law_of_the_data():
    module = LearnedJumps("euler", KERNEL, NOISE, nodes(4), ("phi", "beta"))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    real = CHAIN.sample(2000, torch.Generator().manual_seed(0))
    before = float(kl(module.table()))
    for step in range(12):
        optimizer.zero_grad()
        seeds = range(300 * step, 300 * (step + 1))
        mmd_loss(module(), SCORE, 4, seeds, real[:1000], hamming()).backward()
        optimizer.step()
    assert float(kl(module.table())) < 0.6 * before


def test_a_score_objective_finds_the_attenuated_regression():
    """Its optimum is E[s* s] / E[s^2] over independent runs, and it makes samples worse."""
    chain, kernel, noise = countdown(4, 4), Uniform(4), Geometric()
    score = chain.log_score(kernel)
    table = build("euler", kernel, noise, nodes(8))
    teacher = runs(table, 2000, 10_000, score).states
    seeds = range(2000)
    factors = torch.ones(8, dtype=torch.float64, requires_grad=True)
    loss = score_loss(table, score, factors, teacher, teacher[0], seeds)
    (slope,) = torch.autograd.grad(loss, factors, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), factors)
    # The loss is a parabola of each factor, so that a step of Newton's is its least.
    factors = (factors - slope / bend).detach()
    own = record(score, table, teacher[0], seeds)
    for n in range(8):
        here, there = own.states[n], teacher[n]
        mine, their = (score(y, table.node(n)).exp() for y in (here, there))
        for s, y in ((mine, here), (their, there)):
            s.scatter_(-1, y[..., None], 0.0)
        closed = float((mine * their).sum() / mine.square().sum())
        assert float(factors[n]) == pytest.approx(closed, rel=0.02)
    assert float(factors[4:].max()) < 1
    after = table.scaled(factors)
    assert float(kl(after, chain, score)) > 10 * float(kl(table, chain, score))


def test_the_likeliest_path_is_the_teachers_own_table():
    table = build("euler", KERNEL, NOISE, nodes(4))
    states = runs(table, 2000).states
    values = []
    for factor in (0.7, 1.0, 1.4):
        phi = torch.full((4,), factor, dtype=torch.float64)
        values.append(float(path_loss(table.scaled(phi), SCORE, states)))
    assert values[1] < min(values[0], values[2])


def test_chosen_times_are_better_than_even_ones():
    chain, kernel, noise = countdown(4, 4), Uniform(4), Geometric(1e-3, 6.0)
    score = chain.log_score(kernel)
    fine = nodes(24)
    states = runs(build("euler", kernel, noise, fine), 300, 0, score).states
    times = best_times(kernel, noise, fine, states, score, 4)
    assert len(times) == 5
    assert (times[0], times[-1]) == (1, 0)
    assert all(float((fine - t).abs().min()) < 1e-12 for t in times)
    plain, chosen = (build("euler", kernel, noise, t) for t in (nodes(4), times))
    assert float(kl(chosen, chain, score)) < 0.6 * float(kl(plain, chain, score))
    with pytest.raises(ValueError, match="24 steps has no 25 steps"):
        best_times(kernel, noise, fine, states, score, 25)


@pytest.mark.parametrize(("kernel", "noise"), [(Absorb(3), NOISE), (Uniform(3), Geometric())])
def test_ratios_of_a_site_go_back_in_time_as_its_law_does(kernel, noise):
    """With one site nothing else can move, so that they are the exact ones of less noise."""
    chain = countdown(3, 1)
    late, early = (noise.total(t) for t in (0.8, 0.3))
    laws = [chain.noised_law(kernel, total) for total in (late, early)]
    for x in range(kernel.vocabulary):
        if not laws[0][x]:
            continue
        found = earlier((laws[0] / laws[0][x])[None, None], kernel, late - early)[0, 0]
        torch.testing.assert_close(found / found.sum(), laws[1])


def test_ratios_are_those_of_the_scores():
    x = torch.tensor([[3, 0]])
    log_s = torch.tensor([[[0.1, 0.2, 0.3], [5.0, 6.0, 7.0]]])
    found = ratios(log_s, x, Absorb(3))
    truth = torch.tensor([[[0.1, 0.2, 0.3, 0.0], [0.0] * 4]]).double().exp()
    truth[0, 1] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)
    found = ratios(log_s, torch.tensor([[1, 0]]), Uniform(3))
    assert found[0, 0].tolist() == pytest.approx([math.exp(0.1), 1.0, math.exp(0.3)])


def test_relaxed_sequences_differ_in_few_places():
    x = torch.full((50, 40), 27)
    moved = relaxed(x, 0.05, 27, seed=3)
    assert ((moved != x).sum(1) == 2).all()
    assert torch.equal(moved, relaxed(x, 0.05, 27, seed=3))
    assert torch.equal(relaxed(x, 0.0, 27, seed=3), x)


def test_a_low_temperature_is_seen_as_such_on_text():
    generator = torch.Generator().manual_seed(0)
    source = countdown(6, 3000, stay=0.5).sample(1, generator).flatten()
    chain = bigrams(source, 6, 24, smoothing=1.0)
    score, table = chain.log_score(Absorb(6)), build("euler", Absorb(6), NOISE, nodes(8))
    cold = LearnedJumps("euler", Absorb(6), NOISE, nodes(8), ("beta",))
    with torch.no_grad():
        cold.beta.fill_(math.log(2))
    model = NGrams.of(chain.sample(200, generator).flatten(), 6, order=2)
    data = chain.sample(600, generator)
    plain, other = (
        score_text(runs(each, 600, 0, score, 24).states[-1], data, model)
        for each in (table, cold.table())
    )
    assert plain.flags == ()
    assert plain.entropy >= 0.99 * plain.data_entropy
    assert any("below the data's" in flag for flag in other.flags)
