"""Guidance by differences, on normal data, where a run is a product of numbers."""

from __future__ import annotations

import math

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import advance, build, exact, guidance, initial, sample
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear

LAW = VPLinear()
COND, UNCOND = exact.gaussian([0.0], std=math.sqrt(0.5)), exact.gaussian([0.0], std=math.sqrt(2))
MIXED = exact.mixture([[1.0, -1, 0], [0.5, 2, 1], [-1, 0.3, 2]], std=[0.3, 0.4, 0.35])
ALONE = exact.gaussian([0.5, 2, 1], std=0.4)
PAIR = (ALONE, MIXED)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __call__(self, x, node):
        self.calls += 1
        return self.inner(x, node)


def states(grid, seeds=range(6), shape=(3,)):
    return fewstep.noise(grid, shape, seeds, dtype=torch.float64)


def nodes_of(law=LAW, nfe=5):
    return [node for node in fewstep.grid(law, nfe, "uniform", end="min").nodes[:-1] if node.alpha]


def near(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("solver", "steps"), [("dpmpp-2m", 512), ("unipc-3", 128), ("heun", 256)])
def test_the_variance_of_guided_normal_data(solver, steps):
    """VE, v1 = .5, v2 = 2, w = 3: .0313, not that of the tilted law, .2."""
    grid = fewstep.grid(EDM(0.002, 80), steps, "karras")
    guided = guidance.cfg(COND, UNCOND, 3.0)
    one = torch.tensor([[80.0]], dtype=torch.float64)
    end = float(sample(guided, build(solver, grid), one))
    v, w, top = (0.5, 2.0), 3.0, 80.0**2
    factor = (v[0] / (v[0] + top)) ** (w / 2) * (v[1] / (v[1] + top)) ** (-(w - 1) / 2)
    assert end / 80 == pytest.approx(factor, rel=2e-3)
    assert (factor * 80) ** 2 == pytest.approx(0.0313, abs=5e-5)


def test_interval_skips_the_second_call():
    grid = fewstep.grid(LAW, 8, "uniform")
    inside = (grid.nsr[:-1] > 0.3) & (grid.nsr[:-1] <= 5)
    assert 0 < inside.sum() < 8
    cond, uncond = Counted(MIXED), Counted(ALONE)
    gated = guidance.cfg(cond, uncond, guidance.interval(4.0, 0.3, 5.0))
    table, x = build("unipc-3", grid), states(grid)
    sample(gated, table, x)
    assert (cond.calls, uncond.calls) == (8, inside.sum())
    everywhere = guidance.cfg(MIXED, ALONE, guidance.interval(4.0, 0.0, math.inf))
    near(sample(everywhere, table, x), sample(guidance.cfg(MIXED, ALONE, 4.0), table, x))
    pure = fewstep.grid(FlowMatching(), 3, "uniform").nodes[0]
    assert guidance.interval(4.0, 0.3, math.inf)(pure) == 4
    assert guidance.interval(4.0, 0.3, 1e9)(pure) == 1
    with pytest.raises(ValueError, match="below high"):
        guidance.interval(2.0, 3.0, 3.0)


@pytest.mark.parametrize("law", [LAW, EDM(), FlowMatching()], ids=["vp", "edm", "flow"])
def test_plus_plus_noises_again_by_what_is_not_guided(law):
    """A DDIM step of it, written out, also from pure noise and into clean data."""
    grid, strength = fewstep.grid(law, 6, "uniform"), 0.6
    x = expected = states(grid)
    for here, there in zip(grid.nodes, grid.nodes[1:], strict=False):
        c, u = ALONE(expected, here), MIXED(expected, here)
        eps = (expected - here.alpha * u) / here.sigma
        expected = there.alpha * (u + strength * (c - u)) + there.sigma * eps
    guided = guidance.cfg(ALONE, MIXED, guidance.plus_plus(strength))
    near(sample(guided, build("ddim", grid), x), expected, 1e-11)
    with pytest.raises(ValueError, match="last node takes no step"):
        guidance.plus_plus(0.5)(grid.nodes[-1])


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_rescaled_predictions_have_the_deviation_of_the_condition(prediction):
    for node in nodes_of():
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
        c, w = ALONE(x, node), guidance.cfg(ALONE, MIXED, 5.0)(x, node)
        p, q = samplers.basis.affine(prediction, node.alpha, node.sigma)
        m_c, m = p * x + q * c, p * x + q * w
        whole = guidance.rescaled(ALONE, MIXED, 5.0, 1.0, prediction)(x, node)
        near((p * x + q * whole).std(1), m_c.std(1), 1e-9)
        part = guidance.rescaled(ALONE, MIXED, 5.0, 0.7, prediction)(x, node)
        ratio = m_c.std(1, keepdim=True) / m.std(1, keepdim=True)
        near(p * x + q * part, 0.7 * ratio * m + 0.3 * m, 1e-9)
        near(guidance.rescaled(ALONE, MIXED, 5.0, 0.0, prediction)(x, node), w, 1e-9)


def test_zero_star_scales_what_it_goes_away_from():
    grid = fewstep.grid(FlowMatching(), 5, "uniform")
    node = grid.nodes[2]
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    flow_c, flow_u = ((x - (node.alpha + node.sigma) * m(x, node)) / node.sigma for m in PAIR)
    share = (flow_c * flow_u).sum(1) / (flow_u * flow_u).sum(1)
    away = flow_u * share[:, None]
    # What is left of c is at a right angle to it.
    near(((flow_c - away) * away).sum(1), torch.zeros(4).double(), 1e-10)
    expected = away + 4 * (flow_c - away)
    x0 = guidance.zero_star(*PAIR, 4.0)(x, node)
    near((x - (node.alpha + node.sigma) * x0) / node.sigma, expected, 1e-10)
    # The first steps stand still.
    guided = guidance.zero_star(*PAIR, 4.0, zero_steps=2)
    start = states(grid)
    seen = []
    sample(guided, build("ddim", grid), start, callback=lambda s, _: seen.append(s.x))
    near(seen[0], start)
    near(seen[1], start)
    assert (seen[2] - start).abs().max() > 0.1


def test_apg_leaves_out_what_is_parallel():
    for node in nodes_of():
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
        c, u = ALONE(x, node), MIXED(x, node)
        plain = guidance.apg(*PAIR, 5.0, momentum=0)(x, node)
        near(((plain - c) * c).sum(1), torch.zeros(4).double(), 1e-10)
        same = guidance.apg(*PAIR, 5.0, momentum=0, parallel=1.0)(x, node)
        near(same, guidance.cfg(*PAIR, 5.0)(x, node), 1e-10)
        short = guidance.apg(*PAIR, 5.0, momentum=0, parallel=1.0, norm=0.1)(x, node)
        lengths = (c - u).norm(dim=1, keepdim=True)
        near(short, c + 4 * (c - u) * (0.1 / lengths).clamp(max=1), 1e-10)


def test_apg_remembers_its_direction_with_each_sample():
    """By hand over a run, and the same whatever is done to the state in between."""
    grid = fewstep.grid(LAW, 6, "uniform")
    table, x, beta = build("dpmpp-2m", grid), states(grid), -0.5
    guided = guidance.apg(*PAIR, 3.0, momentum=beta, parallel=1.0)
    before = [torch.zeros_like(x)]

    def by_hand(x, node):
        c, u = ALONE(x, node), MIXED(x, node)
        before[0] = c - u + beta * before[0]
        return c + 2 * before[0]

    expected = sample(by_hand, table, x)
    near(sample(guided, table, x), expected)
    bare = guidance.apg(*PAIR, 3.0, momentum=0, parallel=1.0)
    assert (sample(bare, table, x) - expected).abs().max() > 1e-3
    # Cut in two, turned around and doubled; wrapped in others.
    state = advance(initial(table, x), guided, table, 3)
    turned = advance(state.take([5, 4, 3, 2, 1, 0]).repeat(2), guided, table, 3)
    near(turned.x, expected.flip(0).repeat_interleave(2, 0))
    outer = guidance.Guided(lambda ask: ask(samplers.scale_eps(guided, slope=1e-12)))
    near(sample(outer, table, x), expected, 1e-9)
    # Called by itself it has nothing to remember.
    node = grid.nodes[3]
    near(guided(x, node), ALONE(x, node) + 2 * (ALONE(x, node) - MIXED(x, node)))


def test_off_is_the_bare_denoiser_and_costs_one_call():
    node = fewstep.grid(LAW, 4, "uniform").nodes[1]
    x = states(fewstep.grid(LAW, 4, "uniform"))
    assert guidance.cfg(ALONE, MIXED, 1) is ALONE
    assert guidance.autoguidance(ALONE, MIXED, 1) is ALONE
    for wrap in (guidance.cfg, guidance.rescaled, guidance.zero_star, guidance.apg):
        uncond = Counted(MIXED)
        options = {"zero_steps": 0} if wrap is guidance.zero_star else {}
        guided = wrap(ALONE, uncond, lambda node: 1.0, **options)
        assert torch.equal(guided(x, node), ALONE(x, node))
        assert uncond.calls == 0


def test_at_pure_noise_eps_says_nothing():
    grid = Grid.from_times(FlowMatching(), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="node 0 is pure noise"):
        guidance.rescaled(ALONE, MIXED, 3.0, prediction="eps")(states(grid), grid.nodes[0])
    assert np.isfinite(
        guidance.rescaled(ALONE, MIXED, 3.0, prediction="flow")(states(grid), grid.nodes[0])
    ).all()


def test_thresholds_bound_each_sample_by_its_own():
    x = torch.stack([torch.linspace(-1, 1, 101), torch.linspace(-5, 5, 101)])
    node = fewstep.grid(LAW, 4, "uniform").nodes[1]
    found = guidance.thresholded(lambda x, node: x, 0.9, math.inf)(x, node)
    near(found[0], x[0], 1e-6)
    near(found[1], (x[1] / 4.5).clamp(-1, 1), 1e-6)
    near(guidance.thresholded(lambda x, node: x)(x, node)[1], x[1].clamp(-1, 1), 1e-6)


@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-3m", "deis-3"])
def test_solvers_begin_again_where_guidance_does(solver):
    """After a gate the step is DDIM's, written out; the step after that has two outputs."""
    grid = fewstep.grid(LAW, 9, "uniform")
    gate = guidance.interval(4.0, 1.0, 10.0)
    scales = [gate(node) for node in grid.nodes[:-1]]
    gates = [n for n in range(1, 9) if scales[n] != scales[n - 1]]
    assert len(gates) == 2
    plain = guidance.cfg(MIXED, ALONE, gate)
    table, xs, outputs = build(solver, grid), [states(grid)], []

    def seen(state, x0):
        xs.append(state.x)
        outputs.append(x0)

    sample(guidance.anew(plain, gate), table, xs[0], callback=seen)
    others = [xs[0]]
    sample(plain, table, xs[0], callback=lambda state, x0: others.append(state.x))
    for n in range(9):
        carry = grid.sigma[n + 1] / grid.sigma[n]
        ddim = carry * xs[n] + (grid.alpha[n + 1] - grid.alpha[n] * carry) * outputs[n]
        if n in (0, *gates):
            near(xs[n + 1], ddim)
        elif n < 8:
            assert (xs[n + 1] - ddim).abs().max() > 1e-4
    near(xs[gates[0]], others[gates[0]], 0)
    assert (xs[gates[0] + 1] - others[gates[0] + 1]).abs().max() > 1e-3
    # Nothing of it is left in the state, and segments agree bit for bit.
    state = advance(initial(table, xs[0]), guidance.anew(plain, gate), table, gates[0])
    state = advance(state.take([4, 1]), guidance.anew(plain, gate), table, 9)
    near(state.x, xs[-1][[4, 1]], 0)
    assert {*state.memory} == {"phase"}
    never = guidance.anew(plain, lambda node: 1.0)
    near(sample(never, table, xs[0]), others[-1], 0)


def test_zero_star_forgets_that_it_stood_still():
    """Where the first steps stand still, the rest is the run that begins there."""
    grid = fewstep.grid(FlowMatching(), 8, "uniform")
    star = guidance.zero_star(MIXED, ALONE, 3.0, zero_steps=2)
    x = states(grid)
    whole = sample(star, build("dpmpp-2m", grid), x)
    later = Grid.from_times(FlowMatching(), grid.time[2:])
    rest = guidance.zero_star(MIXED, ALONE, 3.0, zero_steps=0)
    near(whole, sample(rest, build("dpmpp-2m", later), x))
