"""Experts of parts of a mixture, and the router that is right: the mixture again."""

from __future__ import annotations

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import advance, basis, build, exact, guidance, initial, sample
from fewstep.samplers.denoiser import several
from fewstep.samplers.guidance.experts import nucleus
from fewstep.schedules import EDM, FlowMatching, VPLinear

MEANS = np.array([[1.0, -1, 0], [0.5, 2, 1], [-1, 0.3, 2], [-2, -2, 1]])
WEIGHTS, STD = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.3, 0.4, 0.35, 0.5])
WHOLE = exact.mixture(MEANS, WEIGHTS, std=STD)
PARTS = ((0, 1), (2,), (3,))
EXPERTS = [exact.mixture(MEANS[[*p]], WEIGHTS[[*p]], std=STD[[*p]]) for p in PARTS]


def router(x, node):
    """p(part | x), the sizes of the parts included."""
    shares = WHOLE.log_shares(x, node).exp()
    return torch.stack([shares[:, [*p]].sum(1) for p in PARTS], 1)


def x_of(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)


def nodes():
    for law in (VPLinear(), EDM(), FlowMatching()):
        yield from fewstep.grid(law, 5, "uniform").nodes[:-1]


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_exact_experts_and_shares_are_the_whole(prediction):
    """In every parameterisation; with shares that are even they are not."""
    x, wrong = x_of(), []
    for node in nodes():
        p, q = basis.affine(prediction, node.alpha, node.sigma)
        ours, whole = (p * x + q * d(x, node) for d in (guidance.ensemble(EXPERTS, router), WHOLE))
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)
        even = guidance.ensemble(EXPERTS, lambda x, node: torch.ones(len(x), 3))
        wrong.append(float((even(x, node) - WHOLE(x, node)).abs().max()))
    assert max(wrong) > 1e-2


@pytest.mark.parametrize("top", [1, 2, 3])
def test_what_is_left_out_is_the_known_error(top):
    """D - D_top = (1 - R) (mean of the rest - mean of the top), R the share of the top."""
    x = x_of()
    for node in nodes():
        shares, each = router(x, node), torch.stack([e(x, node) for e in EXPERTS], 1)
        order = shares.argsort(1, descending=True)
        kept = torch.zeros_like(shares).scatter(1, order[:, :top], 1.0)
        total = (shares * kept).sum(1, keepdim=True)
        best, rest = (
            torch.einsum("bk,bkd->bd", shares * part, each)
            / (shares * part).sum(1, keepdim=True).clamp_min(1e-300)
            for part in (kept, 1 - kept)
        )
        gap = WHOLE(x, node) - guidance.ensemble(EXPERTS, router, "top", top=top)(x, node)
        torch.testing.assert_close(gap, (1 - total) * (rest - best), rtol=1e-9, atol=1e-12)


def test_nucleus_is_the_fewest_with_the_mass():
    x, node = x_of(), fewstep.grid(VPLinear(), 6, "uniform").nodes[2]
    shares = router(x, node)
    for mass in (0.3, 0.9, 1.0):
        found = nucleus(shares, mass).bool()
        kept = (shares * found).sum(1)
        assert (kept >= mass - 1e-12).all()
        least = torch.where(found, shares, torch.inf).min(1).values
        assert ((kept - least < mass) | (found.sum(1) == 1)).all()
    whole = guidance.ensemble(EXPERTS, router, "nucleus", mass=1.0)(x, node)
    torch.testing.assert_close(whole, WHOLE(x, node), rtol=1e-9, atol=1e-9)


def test_experts_are_asked_for_their_samples_only_and_bit_for_bit():
    x, node = x_of(50), fewstep.grid(VPLinear(), 6, "uniform").nodes[3]
    asked = []

    def counted(expert):
        return lambda x, node: asked.append(len(x)) or expert(x, node)

    top = guidance.ensemble([counted(e) for e in EXPERTS], router, "top")
    found = top(x, node)
    assert sum(asked) == 50
    which = router(x, node).argmax(1)
    dense = torch.stack([e(x, node) for e in EXPERTS], 1)[torch.arange(50), which]
    assert torch.equal(found, dense)


def test_a_run_keeps_and_counts_its_experts():
    grid = fewstep.grid(VPLinear(), 12, "uniform")
    table, x = build("unipc-3", grid), x_of(40)
    top = guidance.ensemble(EXPERTS, router, "top")
    state = advance(initial(table, x), top, table, 12)
    assert state.memory["switches"].max() >= 1
    steady = guidance.ensemble(EXPERTS, router, "top", margin=0.5)
    calm = advance(initial(table, x), steady, table, 12).memory["switches"]
    assert calm.sum() < state.memory["switches"].sum()
    # Cut in two and turned around, it is the same.
    half = advance(initial(table, x), top, table, 5).take(range(39, -1, -1))
    end = advance(half, top, table, 7)
    torch.testing.assert_close(end.x.flip(0), state.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(end.memory["switches"].flip(0), state.memory["switches"])


def test_drawn_experts_come_by_their_shares():
    """Once for a run: an expert for each sample, in the proportion of the parts at noise."""
    grid = fewstep.grid(EDM(), 10, "karras")
    table, count = build("dpmpp-2m", grid), 1000
    x = 80 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).double()
    once = guidance.ensemble(EXPERTS, router, "sample-once", seeds=range(count))
    state = advance(initial(table, x), once, table, 10)
    shares = np.bincount(state.memory["expert"], minlength=3) / count
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=4 * 0.5 / count**0.5)
    assert state.memory["switches"].max() == 0
    near = router(state.x, grid.nodes[-2]).argmax(1)
    assert (near == state.memory["expert"]).double().mean() > 0.95
    each = guidance.ensemble(EXPERTS, router, "sample", seeds=range(count))
    assert advance(initial(table, x), each, table, 10).memory["switches"].max() > 1
    # A stream belongs to its sample, whatever the batch.
    part = guidance.ensemble(EXPERTS, router, "sample", seeds=range(100, 110))
    whole = sample(each, table, x)
    torch.testing.assert_close(sample(part, table, x[100:110]), whole[100:110])


def test_one_expert_a_sample_by_a_race_is_a_draw_from_the_shares_at_every_node():
    """Its noise stays with the sample, so that experts change less than when drawn anew."""
    count = 2000
    x, seeds = x_of(1).expand(count, 3), range(count)
    for node in list(nodes())[:3]:
        race = guidance.ensemble(EXPERTS, router, "gumbel", seeds=seeds)
        each = torch.stack([expert(x[:1], node) for expert in EXPERTS], 1)[0]
        which = torch.cdist(race(x, node), each).argmin(1)
        found = torch.bincount(which, minlength=3) / count
        expected = router(x[:1], node)[0]
        error = (expected * (1 - expected) / count).sqrt()
        assert ((found - expected).abs() < 4 * error + 1e-9).all()
    grid = fewstep.grid(EDM(), 12, "karras")
    table = build("dpmpp-2m", grid)
    x = 80 * x_of(count)[:, :3] / 2
    ends = {}
    for mode in ("gumbel", "sample", "top"):
        denoiser = guidance.ensemble(EXPERTS, router, mode, seeds=seeds)
        ends[mode] = advance(initial(table, x), denoiser, table, 12)
    changes = {mode: float(end.memory["switches"].double().mean()) for mode, end in ends.items()}
    assert 0 < changes["gumbel"] < changes["sample"] / 2
    # By the greatest share the large part has too much, by the race what it should.
    sizes = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    shares = {
        mode: torch.bincount(router(end.x, grid.nodes[-2]).argmax(1), minlength=3) / count
        for mode, end in ends.items()
    }
    far = {mode: float((found - sizes).abs().max()) for mode, found in shares.items()}
    assert far["top"] > 0.1
    assert far["gumbel"] < 0.03
    part = guidance.ensemble(EXPERTS, router, "gumbel", seeds=range(100, 110))
    torch.testing.assert_close(sample(part, table, x[100:110]), ends["gumbel"].x[100:110])


def test_experts_and_ensembles_remember_apart():
    """What an expert remembers stays with its samples; two ensembles have two names."""
    grid = fewstep.grid(VPLinear(), 6, "uniform")
    table, x = build("ddim", grid), x_of(20)

    def counting(expert):
        def rule(ask):
            count = ask.memory.get("count", torch.zeros(len(ask.x)))
            ask.remember("count", count + 1)
            return ask(expert)

        return guidance.Guided(rule)

    top = guidance.ensemble([counting(e) for e in EXPERTS], router, "top")
    state = advance(initial(table, x), top, table, 6)
    assert state.memory["count"].tolist() == [6] * 20
    two = [guidance.ensemble(EXPERTS, router, "top", name=n) for n in ("a ", "b ")]
    both = advance(initial(table, x), guidance.cfg(*two, 2.0), table, 6)
    assert torch.equal(both.memory["a switches"], both.memory["b switches"])


def test_samples_at_times_of_their_own_have_no_one_level():
    grid = fewstep.grid(VPLinear(), 6, "uniform")
    node, x = several([grid.nodes[1], grid.nodes[2]], x_of(2)), x_of(2)
    interval = guidance.interval(2.0, 0.1, 5.0)
    for denoiser in (
        guidance.cfg(EXPERTS[0], EXPERTS[1], interval),
        guidance.classifier(WHOLE, lambda x, node: WHOLE.log_shares(x, node)[:, 0]),
    ):
        with pytest.raises(ValueError, match="samples at times of their own"):
            denoiser(x, node)
    assert guidance.cfg(EXPERTS[0], EXPERTS[1], 2.0)(x, node).shape == x.shape


def test_an_oracle_needs_no_router():
    grid = fewstep.grid(VPLinear(), 6, "uniform")
    table, x = build("ddim", grid), x_of(6)
    choice = torch.tensor([0, 1, 2, 0, 1, 2])
    found = sample(guidance.ensemble(EXPERTS, mode="oracle", choice=choice), table, x)
    for i, k in enumerate(choice.tolist()):
        alone = sample(EXPERTS[k], table, x[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone)


def test_what_is_wrong_is_said():
    x, node = x_of(), fewstep.grid(VPLinear(), 6, "uniform").nodes[2]
    for options, match in (
        ({"mode": "best"}, "mode is one of full, top"),
        ({"mode": "top", "top": 4}, "top is 1 to 3"),
        ({"mode": "sample", "seeds": [1]}, "1 seeds for 7 samples"),
        ({"mode": "oracle"}, "a choice for each of 7"),
        ({"router": None}, "full needs a router"),
        ({"mode": "gumbel"}, "0 seeds for 7 samples"),
        ({"mode": "gumbel", "margin": 0.1}, "margin is for one expert of top"),
        ({"mode": "top", "top": 2, "margin": 0.1}, "margin is for one expert of top"),
        ({"mode": "top", "top": 2, "restart": True}, "no one expert to restart at"),
        ({"mode": "nucleus", "top": 2}, "top is for top"),
        ({"router": lambda x, node: torch.ones(len(x), 2)}, r"gives \[7, 3\], not \[7, 2\]"),
    ):
        with pytest.raises(ValueError, match=match):
            guidance.ensemble(EXPERTS, **{"router": router, **options})(x, node)


def test_a_new_expert_begins_anew_for_its_samples():
    """Only samples whose expert changed take a step of first order, DDIM's."""
    grid = fewstep.grid(VPLinear(), 6, "uniform")
    # From which node to which expert 1 knows best.
    turns = torch.tensor([[2, 9], [9, 2], [3, 4]])

    def at_times(x, node):
        second = (node.index >= turns[: len(x), 0]) & (node.index < turns[: len(x), 1])
        return torch.stack([1 - 0.9 * second.double(), 0.1 + 0.9 * second.double()], 1)

    known = [exact.gaussian([1.0, 2.0], std=0.3), exact.gaussian([-2.0, 1.0], std=0.5)]
    mixed = guidance.ensemble(known, at_times, "top", restart=True)
    xs, outputs = [fewstep.noise(grid, (2,), range(3), dtype=torch.float64)], []

    def seen(state, x0):
        xs.append(state.x)
        outputs.append(x0)

    sample(mixed, build("dpmpp-2m", grid), xs[0], callback=seen)
    switched = {2: [0], 3: [2], 4: [2]}
    for n in range(1, 5):
        carry = grid.sigma[n + 1] / grid.sigma[n]
        ddim = carry * xs[n] + (grid.alpha[n + 1] - grid.alpha[n] * carry) * outputs[n]
        far = (xs[n + 1] - ddim).abs().amax(1) > 1e-6
        assert far.tolist() == [i not in switched.get(n, []) for i in range(3)]


def test_labels_go_with_their_samples():
    """Experts whose network has a label for each sample see those of the sub-batch."""

    def network(x, t, class_labels, scale):
        assert len(class_labels) == len(x)
        return class_labels[:, None] * scale + 0 * x

    labels = torch.arange(7.0, dtype=torch.float64)
    law = VPLinear()
    known = [
        samplers.denoiser(network, law, "x0", class_labels=sign * labels, scale=torch.ones(1))
        for sign in (1, -1, 10)
    ]
    choice = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    node = fewstep.grid(law, 3, "uniform").nodes[1]
    found = guidance.ensemble(known, mode="oracle", choice=choice)(x_of(7), node)
    expected = labels * torch.tensor([1.0, -1, 10])[choice]
    torch.testing.assert_close(found, expected[:, None].expand(7, 3))


def test_guided_experts_are_asked_with_their_own_labels():
    """Experts that are guided, and ensembles of them, see the labels of their samples only."""

    def network(x, t, class_labels):
        return class_labels[:, None] + 0 * x

    labels, law = torch.arange(7.0, dtype=torch.float64), VPLinear()
    plain = samplers.denoiser(network, law, "x0", class_labels=labels)
    none = samplers.denoiser(network, law, "x0", class_labels=0 * labels)
    guided = [guidance.cfg(plain, none, scale) for scale in (2.0, 3.0, 4.0)]
    choice = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    node = fewstep.grid(law, 3, "uniform").nodes[1]
    found = guidance.ensemble(guided, mode="oracle", choice=choice)(x_of(7), node)
    expected = labels * torch.tensor([2.0, 3, 4])[choice]
    torch.testing.assert_close(found, expected[:, None].expand(7, 3))

    def halves(x, node):
        return torch.stack([x[:, 0] > 0, x[:, 0] <= 0], 1).double()

    def quarters(x, node):
        return torch.stack([x[:, 1] > 0, x[:, 1] <= 0], 1).double()

    # Rows of rows.
    inner = guidance.ensemble(guided[:2], quarters, "top", name="inner")
    # Both signs of the second number among those whose first is positive, not in their order.
    x = x_of(7).abs() * torch.tensor([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]] * 2)[:7]
    found = guidance.ensemble([inner, guided[2]], halves, "top")(x, node)
    scales = torch.where(x[:, 0] > 0, torch.where(x[:, 1] > 0, 2.0, 3.0), 4.0)
    torch.testing.assert_close(found, (labels * scales)[:, None].expand(7, 3))
    with pytest.raises(ValueError, match="no one expert to restart at"):
        guidance.ensemble(EXPERTS, router, "full", restart=True)
