from __future__ import annotations

import math

import pytest
import torch
from fewstep.discrete import (
    Absorb,
    Geometric,
    LogLinear,
    MarkovChain,
    Uniform,
    build,
    divergence,
    matrix,
    nodes,
    output_law,
    solver,
    transition,
)
from fewstep.discrete.chains import countdown, dirichlet, sequences
from fewstep.discrete.solvers import SOLVERS

LINEAR = LogLinear()
# The noise under which the figures of the uniform kernel below were measured.
GEOMETRIC = Geometric(1e-3, 6.0)


def missed(chain, kernel, noise, name, times, **options):
    """KL of the data from what the table samples."""
    table = build(name, kernel, noise, times, **options)
    return float(divergence(chain.law(), output_law(chain.log_score(kernel), table, chain.length)))


@pytest.mark.parametrize(
    ("nfe", "spacing", "expected"),
    [(4, "trailing", 0.147), (8, "trailing", 0.0443), (4, "sedd", 0.241), (8, "sedd", 0.056)],
)
def test_euler_misses_the_absorbing_countdown_by_what_others_measured(nfe, spacing, expected):
    found = missed(countdown(3, 4), Absorb(3), LINEAR, "euler", nodes(nfe, spacing))
    assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("steps", "expected"), [(4, 0.143), (8, 0.0110)])
def test_euler_misses_the_uniform_countdown_by_what_others_measured(steps, expected):
    """Steps to 1e-5, and one evaluation more to denoise."""
    found = missed(countdown(4, 4), Uniform(4), GEOMETRIC, "euler", nodes(steps + 1, "sedd"))
    assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("spacing", ["trailing", "sedd"])
def test_euler_is_tweedie_on_the_absorbing_kernel_in_log_linear_noise(spacing):
    chain, times = dirichlet(3, 4, seed=0), nodes(6, spacing)
    laws = [
        output_law(chain.log_score(Absorb(3)), build(name, Absorb(3), LINEAR, times), 4)
        for name in ("euler", "tweedie")
    ]
    torch.testing.assert_close(*laws, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "tweedie", "tau-leaping"])
def test_the_divergence_falls_by_four_when_the_steps_double(name):
    chain = countdown(3, 3)
    few, many = (missed(chain, Absorb(3), LINEAR, name, nodes(n)) for n in (32, 64))
    assert 3 <= few / many <= 4.5


def mild(states, strength):
    """A chain whose tokens say little of each other, so that no extrapolated rate is negative."""
    chain, flat = dirichlet(states, 3, seed=1), 1 / states
    return MarkovChain(
        strength * chain.initial + (1 - strength) * flat,
        strength * chain.transition + (1 - strength) * flat,
        3,
    )


@pytest.mark.parametrize(
    ("kernel", "noise", "end", "strength"),
    [(Absorb(3), LogLinear(1e-9), 0.3, 0.2), (Uniform(3), Geometric(0.1, 30.0), 0.3, 0.5)],
    ids=str,
)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_order_of_the_law(name, kernel, noise, end, strength):
    """Away from clean data, where rates have no bound, from a start that is pure noise."""
    chain = mild(3, strength)
    exact = chain.noised_law(kernel, noise.total(end))
    errors = []
    for n in (32, 64):
        times = torch.linspace(1, end, n + 1, dtype=torch.float64)
        law = output_law(chain.log_score(kernel), build(name, kernel, noise, times), 3)
        errors.append(float((law - exact).abs().sum()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver(name).order, abs=0.2)


def test_tweedie_is_exact_for_a_sequence_of_one():
    """There is no other site: any grid gives the data, from noise that is close to the prior."""
    chain = dirichlet(4, 1, seed=3)
    for kernel, noise in ((Absorb(4), LINEAR), (Uniform(4), Geometric(1e-4, 30.0))):
        for nfe in (1, 2, 5):
            law = output_law(
                chain.log_score(kernel), build("tweedie", kernel, noise, nodes(nfe)), 1
            )
            torch.testing.assert_close(law, chain.law(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "noise"), [(Absorb(3), LINEAR), (Uniform(3), GEOMETRIC)], ids=str
)
def test_a_row_of_tweedie_is_bayes_rule_at_a_site(kernel, noise):
    """P(x_i at t' | x at t) by summing over the clean token, the other sites held."""
    chain, table = dirichlet(3, 3, seed=6), build("tweedie", kernel, noise, nodes(4))
    every = sequences(kernel.vocabulary, 3)
    node, after = table.node(1), noise.total(table.time[2])
    log_s = chain.log_score(kernel)(every, node)
    found = transition(table, 1, {1: every}, {1: log_s})
    rest = chain.rest(kernel, every, node.total).exp()
    early = matrix(kernel, after)
    jump = float(node.total - after)
    late = math.exp(-jump) * torch.eye(kernel.vocabulary, dtype=torch.float64)
    late = late + (1 - math.exp(-jump)) * kernel.law()
    joint = torch.einsum("xia,av,vxi->xiv", rest, early, late[:, every])
    expected = joint / joint.sum(-1, keepdim=True)
    possible = joint.sum(-1) > 1e-12
    torch.testing.assert_close(found[possible], expected[possible], rtol=1e-8, atol=1e-10)


def test_rows_of_two_stages():
    times = nodes(4)
    rate = LINEAR.rate
    table = build("theta-rk-2", Absorb(3), LINEAR, times, theta=0.25)
    assert table.anchor == (0, 0, 2, 3)
    assert table.time.tolist() == pytest.approx([1, 0.875, 0.5, 0.25, 0])
    assert float(table.weights[0, 0]) == pytest.approx(0.25 * 0.5 * float(rate(1.0)))
    assert float(table.weights[1, 0]) == pytest.approx((1 - 2) * 0.5 * float(rate(1.0)))
    assert float(table.weights[1, 1]) == pytest.approx(2 * 0.5 * float(rate(0.875)))
    table = build("theta-trapezoidal", Absorb(3), LINEAR, times, theta=0.25)
    assert table.anchor == (0, 1, 2, 3)
    a1, a2 = 1 / (2 * 0.25 * 0.75), (0.75**2 + 0.25**2) / (2 * 0.25 * 0.75)
    assert float(table.weights[1, 0]) == pytest.approx(-0.75 * 0.5 * a2 * float(rate(1.0)))
    assert float(table.weights[1, 1]) == pytest.approx(0.75 * 0.5 * a1 * float(rate(0.875)))
    # What is left over, and the last row, are Tweedie's.
    plain = build("tweedie", Absorb(3), LINEAR, times)
    torch.testing.assert_close(table.weights[2:, 2:], plain.weights[2:, 2:])
    odd = build("theta-trapezoidal", Absorb(3), LINEAR, nodes(5))
    assert odd.law == ("exponential",) * 4 + ("linear",)


def test_the_nodes():
    assert nodes(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert nodes(3, "sedd").tolist() == pytest.approx([1, 0.500005, 1e-5, 0])
    with pytest.raises(ValueError, match="at least 1 evaluation"):
        nodes(0)
    with pytest.raises(ValueError, match="sedd needs at least 2"):
        nodes(1, "sedd")
    with pytest.raises(ValueError, match="unknown spacing 'even'"):
        nodes(4, "even")


def test_names_and_options():
    assert [build(name, Absorb(3), LINEAR, nodes(3)).name for name in SOLVERS] == list(SOLVERS)
    with pytest.raises(ValueError, match="unknown discrete solver 'Eular'; choose one of euler"):
        build("Eular", Absorb(3), LINEAR, nodes(3))
    with pytest.raises(ValueError, match="theta must be between 0 and 1, got 1"):
        build("theta-rk-2", Absorb(3), LINEAR, nodes(3), theta=1)
    with pytest.raises(ValueError, match="times must descend"):
        build("euler", Absorb(3), LINEAR, torch.tensor([1.0, 0.2, 0.5, 0.0]))


@pytest.mark.parametrize("name", SOLVERS)
def test_weights_learn_the_times(name):
    times = nodes(4).requires_grad_()
    table = build(name, Uniform(3), GEOMETRIC, times)
    (slope,) = torch.autograd.grad(table.weights.square().sum() + table.time.sum(), times)
    used = [0, 2, 3] if name.startswith("theta") else [0, 1, 2, 3]
    assert (slope[used] != 0).all()
    assert slope.isfinite().all()
