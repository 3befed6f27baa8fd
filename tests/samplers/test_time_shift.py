"""Time shift, against a recursion of one number: of isotropic normal data, the variance."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import pairwise

import fewstep
import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import advance, build, initial, sample
from fewstep.samplers.denoiser import several
from fewstep.samplers.matching import Window, marginal_variance, sample_variance
from fewstep.samplers.time_shift import MEMORY, scale_eps, shifted, time_shift
from fewstep.schedules import EDM, Grid, VPDiscrete, VPLinear, betas

from .problems import SCHEDULES, SOLVERS

LAW = VPDiscrete(betas())
PRODUCT = np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), 1.0)  # at -1: clean data
SHAPE = (3, 32, 32)
V0 = 0.25
# Steps, error of eps: variance at the end over that of the data, by solver and rule.
PUBLISHED = {
    (10, 0.01): {"none": 0.4860, "source": 0.5131, "aware": 0.5284, "model": 0.4762},
    (20, 0.01): {"none": 0.6622, "source": 0.6755, "aware": 0.7408, "model": 0.6501},
    (20, 0.0): {"none": 0.7525, "source": 0.6981, "aware": 0.7622, "model": 0.7661},
}
PUBLISHED[10, 0.01]["destination"] = 0.4773
PUBLISHED[20, 0.01]["destination"] = 0.5544
PUBLISHED[20, 0.0]["destination"] = 0.8442


def times_of(steps):
    return [*range(1000 - 1000 // steps, -1, -1000 // steps), -1]


def network_of(law, error=0.0, v0=V0):
    """The exact eps of N(0, v0 I), too large by `error`, told nothing but the label."""

    def network(x, label):
        time = law.time_of(label.double().numpy())
        alpha, sigma = law.alpha(time), law.sigma(time)
        gain = torch.from_numpy(sigma / (alpha**2 * v0 + sigma**2) * (1 + error))
        return x * gain.view(-1, *[1] * (x.ndim - 1)).to(x)

    return samplers.denoiser(network, law)


def noises(count, unit=False, shape=SHAPE, seed=0, dtype=torch.float64):
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if unit:
        x = x / x.flatten(1).std(1).view(-1, *[1] * len(shape))
    return x


def recursion(variance, steps, error, mode="none", rule=0.0, width=40, cutoff=300):
    """The variance of DDIM at the end, from that at the first node; written out independently."""
    nodes = times_of(steps)

    def nearest(center):
        window = np.arange(max(center - width // 2, 0), min(center + width // 2, 999) + 1)
        levels = PRODUCT[window] * rule + 1 - PRODUCT[window]
        return int(window[np.argmin(np.abs(variance - levels))])

    for i, (here, there) in enumerate(pairwise(nodes)):
        source, asked, goal = here, here, there
        if mode in ("source", "model") and i > 0 and here > cutoff:
            asked = nearest(here)
            source = asked if mode == "source" else here
        if mode == "destination" and i > 0 and there > cutoff:
            goal = nearest(there)
        a = PRODUCT[asked]
        eps = np.sqrt(1 - a) / (a * V0 + 1 - a) * (1 + error)
        a, b = PRODUCT[source], PRODUCT[goal]
        variance *= (np.sqrt(b / a) * (1 - np.sqrt(1 - a) * eps) + np.sqrt(1 - b) * eps) ** 2
    return variance / V0


def shift_of(way, steps, solver="ddim"):
    mode = {"aware": "source"}.get(way, way)
    grid = Grid.from_times(LAW, times_of(steps))
    return time_shift(solver, grid, 40, 300, mode, data_variance=V0 if way == "aware" else 0.0)


def ends(way, steps, error, x):
    """The variance of each sample at the end, over that of the data."""
    if way == "none":
        table, row_map = build("ddim", Grid.from_times(LAW, times_of(steps))), None
    else:
        row_map = shift_of(way, steps)
        table = row_map.table
    return sample_variance(sample(network_of(LAW, error), table, x, row_map=row_map)) / V0


@pytest.mark.parametrize("way", ["none", "source", "aware", "model", "destination"])
@pytest.mark.parametrize(("steps", "error"), PUBLISHED)
def test_each_mode_is_the_one_it_says(way, steps, error):
    """As measured elsewhere, and for each sample as its own recursion has it."""
    rule = V0 if way == "aware" else 0.0
    mode = {"aware": "source"}.get(way, way)
    of_one = recursion(1.0, steps, error, mode, rule)
    assert of_one == pytest.approx(PUBLISHED[steps, error][way], rel=1e-3)
    found = ends(way, steps, error, noises(1, unit=True))
    assert found == pytest.approx(PUBLISHED[steps, error][way], rel=0.01)
    x = noises(16)
    each = [recursion(v, steps, error, mode, rule) for v in sample_variance(x)]
    np.testing.assert_allclose(ends(way, steps, error, x), each, rtol=1e-5)


def test_samples_are_shifted_one_by_one():
    """Each is brought to the variance of its time: the spread over samples all but goes."""
    bare, shifted_ones = (ends(way, 20, 0.01, noises(64)) for way in ("none", "source"))
    assert bare.std(ddof=1) == pytest.approx(0.0142, rel=0.15)
    assert shifted_ones.std(ddof=1) == pytest.approx(0.0005, rel=0.15)


@pytest.mark.parametrize("name", ["vp-discrete", "vp-linear", "vp-cosine", "edm", "flow"])
@pytest.mark.parametrize("off", [-0.4, 0.0, 0.3])
def test_times_are_recovered(name, off):
    """Of states of another time in the window, to what chance allows; of others its end."""
    law, dim = SCHEDULES[name], int(np.prod(SHAPE))
    grid = fewstep.grid(law, 8, "lam", t_max=float(law.time(-2.0)))
    k = int(np.argmin(np.abs(grid.lam)))
    width = 0.4 * float(-np.diff(grid.label[k - 1 : k + 2]).max())
    window = Window.around(grid, k, width, V0)
    time = float(law.time_of(grid.label[k] + off * width))
    node = Grid.from_times(law, [time, law.t_zero]).nodes[0]
    x = node.alpha * V0**0.5 * noises(200, seed=1) + node.sigma * noises(200, seed=2)
    found = window.match(sample_variance(x))
    h = 1e-4 * time
    slope = np.diff(marginal_variance(law, [time - h, time + h], V0))[0] / (2 * h)
    allowed = marginal_variance(law, time, V0) * np.sqrt(2 / (dim - 1)) / slope
    assert (np.abs(found - time) < 3 * allowed).mean() > 0.98
    assert np.sqrt(np.square(found - time).mean()) < 1.15 * allowed
    exact = marginal_variance(law, [time], V0)
    np.testing.assert_allclose(window.match(exact), time, rtol=1e-5)
    last = law.time_of(grid.label[k] + width / 2)
    np.testing.assert_allclose(window.match(exact + 10), last, rtol=1e-12)


def test_steps_between_candidates():
    """Whole steps from the node on, the lower of two as near; clipped where times end."""
    grid = Grid.from_times(LAW, [995, 602.5, 3, 1, -1])
    near = Window.around(grid, 1, 5, 0.0, 1.0)
    assert near.times.tolist() == [600.5, 601.5, 602.5, 603.5, 604.5]
    assert Window.around(grid, 0, 20, 0.0, 1.0).times.tolist() == list(range(985, 1000))
    assert Window.around(grid, 2, 9, 0.0, 2.0).times.tolist() == [1, 3, 5, 7]
    assert Window.around(grid, 3, 9, 0.0).times[0] == 0
    assert Window.around(grid, 3, 9, 0.0).times[-1] == 5.5
    assert near.match(near.variances).tolist() == near.times.tolist()
    flat = Window(np.arange(3.0), np.array([0.0, 1.0, 0.0]), True)
    assert flat.match(np.array([0.0, 0.4, 0.9])).tolist() == [0, 0, 1]
    falling = Window(np.arange(3.0), np.array([2.0, 1.0, 0.5]), True)
    assert falling.match(np.array([3.0, 1.5, 0.75, 0.1])).tolist() == [0, 0.5, 1.5, 2]


def claims(shift, x, denoiser=None):
    """The times that samples were given, [B, N + 1]."""
    state = initial(shift.table, x, range(len(x)))
    denoiser = denoiser or network_of(LAW, 0.05)
    state = advance(state, denoiser, shift.table, shift.table.grid.nfe, row_map=shift)
    return state.memory[MEMORY].numpy()


@pytest.mark.parametrize("mode", ["source", "model", "destination"])
def test_only_inner_nodes_above_the_cutoff_move(mode):
    grid = Grid.from_times(LAW, times_of(10))
    shift = time_shift("ddim", grid, 40, 300, mode)
    moved = np.abs(claims(shift, noises(8)) - grid.time).max(0) > 0
    first = 2 if mode == "destination" else 1
    # Label 300, at node 6, is not above it.
    assert moved.tolist() == [first <= k < 6 for k in range(11)]
    asked = []
    network = network_of(LAW, 0.05)

    def denoiser(x, node):
        asked.append(node)
        return network(x, node)

    sample(denoiser, shift.table, noises(8), row_map=shift)
    assert [node.index for node in asked] == list(range(10))
    tensors = [isinstance(node.time, torch.Tensor) for node in asked]
    assert tensors == [mode != "destination" and 1 <= k < 6 for k in range(10)]


@pytest.mark.parametrize("mode", ["source", "model", "destination"])
@pytest.mark.parametrize("name", ["ddim", "unipc-3", "pndm", "ddpm", "heun"])
def test_no_window_is_the_bare_solver_bit_for_bit(name, mode):
    grid, x = Grid.from_times(LAW, times_of(10)), noises(3, shape=(4,))
    denoiser = network_of(LAW, 0.05)
    bare = sample(denoiser, build(name, grid), x, seeds=range(3))
    for window, cutoff in ((0, 300), (1, 300), (40, 999)):
        shift = time_shift(name, grid, window, cutoff, mode)
        assert torch.equal(sample(denoiser, shift.table, x, seeds=range(3), row_map=shift), bare), (
            window
        )


LISTED = (
    *("ddpm", "ddim", "pndm", "ipndm-4", "deis-2", "deis-tab3"),
    *("dpm-2m", "dpmpp-2m", "dpmpp-3m", "unipc-3"),
)


class Claimed(Window):
    """A window whose samples are all of one time."""

    def match(self, variance):
        return np.full(len(variance), self.times[0])


def with_claims(shift, offsets):
    """The shift, with samples claimed at fixed times whatever their variance."""
    windows = tuple(
        None
        if each is None
        else Claimed(shift.grid.time[[k, k]] + offsets[k], each.variances, True)
        for k, each in enumerate(shift.windows)
    )
    other = replace(shift)
    object.__setattr__(other, "windows", windows)
    return other


@pytest.mark.parametrize(
    "name",
    [pytest.param(s, marks=[] if s in LISTED else pytest.mark.slow) for s in SOLVERS],
)
def test_a_row_is_that_of_the_table_on_the_times_so_far(name):
    """For every solver; so rows depend on no nodes but those whose times are looked up."""
    grid, x = Grid.from_times(LAW, times_of(10)), noises(2, shape=(4,))
    rng = np.random.default_rng(0)
    offsets = rng.uniform(-20, 20, 11)
    denoiser = network_of(LAW, 0.05)
    for mode in ("source", "destination"):
        shift = with_claims(time_shift(name, grid, 40, 300, mode), offsets)
        places = np.flatnonzero(~shift.table.grid.stage)
        if shift.table.grid.nfe == grid.nfe:
            places = np.arange(11)
        moves = np.array([each is not None for each in shift.windows])
        expected = state = initial(shift.table, x, range(2))
        for n in range(shift.table.grid.nfe):
            step = places[~shift.table.grid.stage[places]]
            start = int(np.flatnonzero(places == step[step <= n].max())[0])
            goal = int(np.flatnonzero(places == step[step > n].min())[0])
            told = np.arange(11) <= start if mode == "source" else np.arange(11) == goal
            if mode == "destination" and start == 0:
                told[:] = False
            table = build(name, grid.with_times(grid.time + np.where(told & moves, offsets, 0)))
            # In the executor's own words: the state goes on under the other table.
            expected = advance(expected, denoiser, table)
            state = advance(state, denoiser, shift.table, row_map=shift)
            torch.testing.assert_close(state.x, expected.x, rtol=1e-10, atol=1e-12)
            for ours, theirs in zip(state.outputs, expected.outputs, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("mode", ["source", "destination", "model"])
def test_segments_compose_and_batches_split(name, mode):
    grid, x, seeds = Grid.from_times(LAW, times_of(10)), noises(4, dtype=torch.float32), range(4)
    shift, denoiser = time_shift(name, grid, 40, 300, mode), network_of(LAW, 0.05)
    n = shift.table.grid.nfe
    whole = sample(denoiser, shift.table, x, seeds=seeds, row_map=shift)
    bare = sample(denoiser, shift.table, x, seeds=seeds)
    assert (whole != bare).flatten(1).any(1).all()
    assert whole.dtype == x.dtype
    for k in (0, 1, 3, n - 1):
        state = advance(initial(shift.table, x, seeds), denoiser, shift.table, k, row_map=shift)
        for part, index in (
            (state, [0, 1, 2, 3]),
            (state.take([2, 0]), [2, 0]),
            (state.take([1]), [1]),
            (state.repeat(2), [0, 0, 1, 1, 2, 2, 3, 3]),
        ):
            rest = advance(part, denoiser, shift.table, n, row_map=shift)
            assert torch.equal(rest.x, whole[index])
    nobody = advance(
        initial(shift.table, x, seeds).take([]), denoiser, shift.table, n, row_map=shift
    )
    assert len(nobody.x) == 0


@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine", "edm", "flow", "sd", "zero-snr"])
@pytest.mark.parametrize("solver", ["ddim", "unipc-3"])
def test_shifts_in_any_form(name, solver):
    """A state that is another time's is sampled as if it had come there."""
    law = SCHEDULES[name]
    grid = fewstep.grid(law, 12, "lam", t_max=float(law.time(-2.0)))
    width = 0.5 * float(np.diff(-grid.label[1:6]).min())
    cutoff = float(grid.label[5])
    network = network_of(law)
    shift = time_shift(solver, grid, width, cutoff, data_variance=V0, resolution=0)
    x = grid.sigma[0] * noises(8)
    times = claims(shift, x, network)[:, 1:5]
    assert (np.abs(law.label(times) - grid.label[1:5]) <= width / 2 * (1 + 1e-9)).all()
    assert (times.std(0) > 0)[:3].all()
    # The same law in EDM form drives the same network: nodes of another schedule, each sample's.
    if name == "vp-linear":
        other = Grid.from_sigmas(grid.nsr)
        there = time_shift(solver, other, 0.05, float(other.label[5]), data_variance=V0)
        result = sample(network, there.table, x / grid.alpha[0], row_map=there)
        assert torch.isfinite(result).all()
        assert (claims(there, x / grid.alpha[0], network)[:, 1:5].std(0) > 0).all()


@pytest.mark.parametrize("name", LISTED)
def test_a_shifted_model_is_asked_for_eps(name):
    """The network at other times, its eps at the levels of the grid; whatever the solver takes."""
    grid, x = Grid.from_times(LAW, times_of(10)), noises(2, shape=(4,))
    offsets = np.random.default_rng(0).uniform(-20, 20, 11)
    shift = with_claims(time_shift(name, grid, 40, 300, "model"), offsets)
    network = network_of(LAW, 0.05)

    def denoiser(x, node):
        k = int(np.flatnonzero(grid.time == node.time)[0])
        if node.stage or shift.windows[k] is None:
            return network(x, node)
        asked = grid.with_times(grid.time + offsets * (np.arange(11) == k)).nodes[k]
        eps = (x - asked.alpha * network(x, asked)) / asked.sigma
        return (x - node.sigma * eps) / node.alpha

    expected = sample(denoiser, shift.table, x, seeds=range(2))
    found = sample(network, shift.table, x, seeds=range(2), row_map=shift)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_unit_variance_tells_no_time():
    """The paper's rule then takes the most noise there is; the one that knows it says so."""
    grid = Grid.from_times(LAW, times_of(10))
    window = Window.around(grid, 5, 40, 0.0, 1.0)
    x = LAW.alpha(400) * noises(4, seed=3) + LAW.sigma(400) * noises(4, seed=4)
    assert window.match(sample_variance(x)).tolist() == [420] * 4
    for v in (0.95, 1.0, 1.05):
        with pytest.warns(UserWarning, match="unit variance, such as latents"):
            time_shift("ddim", grid, 40, 300, data_variance=v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        time_shift("ddim", grid, 40, 300, data_variance=0.25)
        time_shift("ddim", fewstep.grid(EDM(), 10), 0.1, 0.0, data_variance=1.0)


def test_what_is_wrong_is_said():
    grid = Grid.from_times(LAW, times_of(10))
    for options, message in (
        ({"window": -1}, "window must be 0 or more"),
        ({"data_variance": float("nan")}, "data_variance must be 0 or more"),
        ({"mode": "both"}, "mode must be one of source, model, destination"),
        ({"window": 100}, "windows of nodes 1 and 2, at labels 800 and 700, overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            time_shift("ddim", **{"grid": grid, "window": 40, "cutoff": 300, **options})
    with pytest.raises(ValueError, match="does not know its"):
        time_shift("ddim", replace(grid, schedule=None), 40, 300)
    shift, x = time_shift("ddim", grid, 40, 300), noises(2)
    learned = replace(shift.table, weights=torch.tensor(shift.table.weights))
    with pytest.raises(ValueError, match="run its own"):
        sample(network_of(LAW), build("dpmpp-2m", grid), x, row_map=shift)
    with pytest.raises(ValueError, match="run its own"):
        sample(network_of(LAW), learned, x, row_map=shift)
    with pytest.raises(ValueError, match="one number has no variance"):
        sample(network_of(LAW), shift.table, x[:, 0, :1, 0], row_map=shift)
    own = time_shift(lambda grid: build("ddim", grid), grid, 40, 300)
    ours, theirs = (sample(network_of(LAW), each.table, x, row_map=each) for each in (own, shift))
    assert torch.equal(ours, theirs)


def test_scaled_eps():
    """eps / (base + slope n), whatever the network predicts; factor 1 is no change at all."""
    schedule = VPLinear()
    nodes = fewstep.grid(schedule, 5, "lam").nodes
    x, denoiser = noises(2, shape=(4,)), samplers.denoiser(lambda x, t: torch.tanh(x), schedule)
    for base, slope in ((1.0012, 0.0), (1.0, 0.01)):
        for node in nodes[:-1]:
            found = scale_eps(denoiser, base, slope)(x, node)
            eps = (x - node.alpha * denoiser(x, node)) / node.sigma
            scaled = (x - node.alpha * found) / node.sigma
            torch.testing.assert_close(scaled * (base + slope * node.index), eps)
    assert torch.equal(scale_eps(denoiser, 1.0, 0.1)(x, nodes[0]), denoiser(x, nodes[0]))
    # It mends an error of that size.
    law = VPDiscrete(betas())
    table = build("ddim", Grid.from_times(law, times_of(10)))
    mended = sample(scale_eps(network_of(law, 0.01), 1.01), table, x)
    torch.testing.assert_close(mended, sample(network_of(law), table, x), rtol=1e-6, atol=1e-6)
    noise = fewstep.grid(SCHEDULES["flow"], 3).nodes[0]
    with pytest.raises(ValueError, match="node 0 is pure noise"):
        scale_eps(lambda x, node: x, 1.01)(x, noise)
    both = scale_eps(denoiser, 1.01)(x, several(nodes[1:3], x))
    alone = [scale_eps(denoiser, 1.01)(x[i : i + 1], nodes[1 + i]) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


def test_rows_are_built_once():
    shift = shift_of("source", 10, "unipc-3")
    shifted.cache_clear()
    sample(network_of(LAW), shift.table, noises(1).repeat(5, 1, 1, 1), row_map=shift)
    # Four rows of the shifted nodes' own, and two that still use one of them.
    built = shifted.cache_info().misses
    sample(network_of(LAW), shift.table, noises(1), row_map=shift)
    assert shifted.cache_info().misses == built <= 10


def test_tables_with_a_bias_are_refused():
    """It would be that of the times of the grid."""
    grid = Grid.from_times(LAW, times_of(10))
    with pytest.raises(ValueError, match="has a bias"):
        time_shift(lambda nodes: build("unipc-3", nodes, analytic_first_step=0.5), grid, 20, 300)
