"""The executor: states are values, hooks are neutral, gradients flow, no device is read."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import Tableau, advance, build, exact, initial, sample
from fewstep.samplers.executor import joined
from fewstep.schedules import Grid, VPLinear
from torch.utils._python_dispatch import TorchDispatchMode

from .problems import SCHEDULES, SOLVERS

GRID = fewstep.grid(SCHEDULES["sd"], 7, "karras")
DENOISER = exact.mixture([[1.0, -1], [0.5, 2]], std=0.3)


def start(batch: int = 4) -> torch.Tensor:
    return fewstep.noise(GRID, (2,), range(batch), dtype=torch.float64)


@pytest.mark.parametrize("name", SOLVERS)
def test_segments_compose_bit_for_bit(name):
    """0..N equals 0..k, k..N; also for samples taken or repeated on the way."""
    table = build(name, GRID)
    seeds = [11, 12, 13, 14]
    whole = sample(DENOISER, table, start(), seeds=seeds)
    for k in range(table.grid.nfe + 1):
        state = advance(initial(table, start(), seeds), DENOISER, table, k)
        assert state.step == k
        rest = advance(state, DENOISER, table, table.grid.nfe)
        assert torch.equal(rest.x, whole)
        taken = advance(state.take([2, 0]), DENOISER, table, table.grid.nfe)
        assert torch.equal(taken.x, whole[[2, 0]])
        copies = advance(state.repeat(2), DENOISER, table, table.grid.nfe)
        assert torch.equal(copies.x, whole.repeat_interleave(2, 0))


@pytest.mark.parametrize("name", SOLVERS)
def test_identity_hooks_change_no_bit(name):
    table = build(name, GRID)
    plain = sample(DENOISER, table, start(), seeds=range(4))
    hooked = sample(
        DENOISER,
        table,
        start(),
        seeds=range(4),
        start=lambda x, node: x,
        row_map=lambda state, row: (state, row),
        time_map=lambda x, node: node,
        on_state=lambda x, node: x,
        callback=lambda state, x0: None,
    )
    assert torch.equal(plain, hooked)


def test_hooks_see_what_they_should():
    """Start once at node 0; on_state on every node that is no stage; time_map before each call."""
    grid = Grid.from_lams(VPLinear(), np.linspace(-2, 2, 4))
    table = build("heun", grid)
    seen: dict[str, list[int]] = {"start": [], "time": [], "state": [], "callback": []}
    sample(
        DENOISER,
        table,
        start(),
        start=lambda x, node: seen["start"].append(node.index) or x,
        time_map=lambda x, node: seen["time"].append(node.index) or node,
        on_state=lambda x, node: seen["state"].append(node.index) or x,
        callback=lambda state, x0: seen["callback"].append(state.step),
    )
    assert seen == {
        "start": [0],
        "time": [0, 1, 2, 3, 4, 5],
        "state": [2, 4, 6],
        "callback": [1, 2, 3, 4, 5, 6],
    }
    moved = sample(DENOISER, table, start(), on_state=lambda x, node: 0 * x)
    assert torch.equal(moved, torch.zeros_like(moved))
    shifted = sample(DENOISER, table, start(), start=lambda x, node: x + 1)
    assert torch.equal(shifted, sample(DENOISER, table, start() + 1))


def damped(state, row):
    """A row with coefficients for each sample, which fade with the rows that a sample has seen."""
    count = state.memory.get("count", torch.zeros(len(state.x), 1, dtype=torch.float64)) + 1
    weights = tuple((i, weight / count) for i, weight in row.weights)
    return replace(state, memory={**state.memory, "count": count}), row._replace(weights=weights)


@pytest.mark.parametrize("name", ["ddim", "unipc-3", "heun", "sde-dpmpp-2m"])
def test_mapped_rows_go_on_from_what_is_remembered(name):
    table, seeds = build(name, GRID), [11, 12, 13, 14]
    whole = sample(DENOISER, table, start(), seeds=seeds, row_map=damped)
    for k in range(table.grid.nfe + 1):
        state = advance(initial(table, start(), seeds), DENOISER, table, k, row_map=damped)
        if k:
            assert state.memory["count"].tolist() == [[k]] * 4
        for part, index in (
            (state, [0, 1, 2, 3]),
            (state.take([2, 0]), [2, 0]),
            (state.repeat(2), [0, 0, 1, 1, 2, 2, 3, 3]),
        ):
            rest = advance(part, DENOISER, table, table.grid.nfe, row_map=damped)
            assert torch.equal(rest.x, whole[index])
    # By hand, from the table; nothing is left for the one that follows.
    fade = table.weights / np.arange(1, table.grid.nfe + 1)[:, None]
    by_hand = sample(DENOISER, replace(table, weights=fade), start(), seeds=seeds)
    torch.testing.assert_close(whole, by_hand)


def test_a_mapped_row_runs_on_the_state_it_comes_with():
    table = build("ddim", GRID)
    seen = []

    def moved(state, row):
        seen.append((state.step, row.node.index))
        return replace(state, x=state.x + 1), row

    state = advance(initial(table, start()), DENOISER, table, 1, row_map=moved)
    assert torch.equal(state.x, advance(initial(table, start() + 1), DENOISER, table, 1).x)
    advance(state, DENOISER, table, 2, row_map=moved)
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_same_seed_same_image_for_any_split():
    table = build("sde-dpmpp-2m", GRID)
    seeds = [5, 6, 7, 8, 9]
    x = fewstep.noise(GRID, (2,), seeds)
    whole = sample(DENOISER, table, x, seeds=seeds)
    for part in ([0, 1], [2], [3, 4]):
        chosen = [seeds[i] for i in part]
        z = fewstep.noise(GRID, (2,), chosen)
        assert torch.equal(z, x[part])
        assert torch.equal(sample(DENOISER, table, z, seeds=chosen), whole[part])
    other = sample(DENOISER, table, x, seeds=[s + 1 for s in seeds])
    assert not torch.allclose(other, whole)


def test_streams_are_white():
    """Draws of different seeds, and of one seed at different steps, are uncorrelated normals."""
    table = build("ddpm", GRID)
    drawn = []
    for k in (0, 1):
        for seeds in (range(50), range(50, 100)):
            like = torch.empty(50, 400)
            drawn.append(fewstep.samplers.streams.standard_normal(seeds, k, like))
    z = torch.stack(drawn).reshape(4, -1).double()
    assert table.stochastic
    torch.testing.assert_close(z @ z.T / z.shape[1], torch.eye(4).double(), rtol=0, atol=0.03)


def test_default_seeds_follow_the_global_generator():
    table = build("ddpm", GRID)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(sample(DENOISER, table, start()))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_given_noise_replaces_the_streams():
    table = build("ddpm", GRID)
    asked = []

    def source(k, x):
        asked.append(k)
        return torch.zeros_like(x)

    got = sample(DENOISER, table, start(), noise=source)
    silent = replace(table, noise=np.zeros_like(table.noise))
    assert torch.equal(got, sample(DENOISER, silent, start()))
    # Nothing is drawn for the last step, into clean data.
    assert asked == list(range(GRID.nfe - 1))


def test_gradients_flow_to_the_state_the_network_and_the_table():
    table = build("unipc-2", GRID)
    gain = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def network(x, node):
        return gain * DENOISER(x, node)

    x = start().requires_grad_()
    weights = torch.tensor(table.weights, requires_grad=True)
    carry = torch.tensor(table.carry, requires_grad=True)

    def run(x, weights, carry):
        return sample(network, replace(table, weights=weights, carry=carry), x)

    torch.testing.assert_close(run(x, weights, carry), sample(network, table, x))
    run(x, weights, carry).square().sum().backward()
    assert x.grad.abs().min() > 0
    assert gain.grad.abs() > 0
    lower = torch.ones_like(weights).tril().bool()
    assert (weights.grad[lower] != 0).all()
    assert (weights.grad[~lower] == 0).all()
    small = [item.detach().requires_grad_() for item in (x[:1], weights, carry)]
    assert torch.autograd.gradcheck(run, small)


def test_coefficients_may_differ_per_sample():
    """One batch with two tables in trailing dimensions equals two runs."""
    first, second = build("dpmpp-2m", GRID), build("ab-3", GRID)

    def joined(what):
        pair = np.stack([getattr(first, what), getattr(second, what)], -1)
        return np.repeat(pair, 2, -1)[..., None]

    both = Tableau(GRID, joined("carry"), joined("weights"))
    got = sample(DENOISER, both, start())
    torch.testing.assert_close(got[:2], sample(DENOISER, first, start()[:2]))
    torch.testing.assert_close(got[2:], sample(DENOISER, second, start()[2:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_networks_keep_a_float32_state(dtype):
    table = build("unipc-3", GRID)
    seen = []

    def network(x, node):
        seen.append(x.dtype)
        return DENOISER(x, node).to(dtype)

    got = sample(network, table, start().to(dtype))
    assert got.dtype == torch.float32
    assert set(seen) == {torch.float32}


def test_outputs_are_dropped_when_dead():
    table = build("dpmpp-3m", fewstep.grid(SCHEDULES["sd"], 12))
    sizes = []
    sample(DENOISER, table, start(), callback=lambda state, x0: sizes.append(len(state.outputs)))
    assert max(sizes) == 2
    assert sizes[-1] == 0
    assert [len(live) for live in table.live()] == sizes


def test_a_column_of_zeros_is_not_evaluated():
    table = build("ddim", GRID)
    weights = table.weights.copy()
    weights[:, 0] = 0
    table = replace(table, weights=weights)
    seen = []
    sample(lambda x, node: seen.append(node.index) or x, table, start())
    assert seen == list(range(1, GRID.nfe))
    assert table.nfe == GRID.nfe - 1


class NoHostReads(TorchDispatchMode):
    """Fails on anything that would make a device wait for the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [s for s in SOLVERS if not s.startswith(("sde", "sa", "ddpm"))])
def test_no_host_reads_in_the_loop(name):
    """On meta tensors there is nothing to read: a data-dependent branch would raise."""
    table = build(name, GRID)
    x = torch.empty((2, 3, 4, 4), device="meta")
    schedule = SCHEDULES["sd"]
    denoiser = fewstep.samplers.denoiser(lambda x, label: x * label[:, None, None, None], schedule)
    with NoHostReads():
        assert sample(denoiser, table, x).shape == x.shape


def test_a_run_compiles_without_a_graph_break():
    table = build("unipc-3", GRID)
    schedule = SCHEDULES["sd"]
    denoiser = fewstep.samplers.denoiser(lambda x, label: torch.tanh(x), schedule)
    run = torch.compile(lambda x: sample(denoiser, table, x), fullgraph=True, backend="eager")
    x = start()
    torch.testing.assert_close(run(x), sample(denoiser, table, x))


def test_copies_and_pickles_of_long_tables():
    """A thousand linked nodes neither exhaust the stack nor lose their protection."""
    table = build("unipc-3", fewstep.grid(SCHEDULES["sd"], 600, "uniform"))
    for twin in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert np.array_equal(twin.weights, table.weights)
        assert twin.grid.schedule == table.grid.schedule
        assert not twin.weights.flags.writeable
        assert not twin.grid.lam.flags.writeable


def test_noise_from_a_hook_needs_no_seeds():
    table = build("ddpm", GRID)
    state = initial(table, start(), seeds=())
    assert advance(state, DENOISER, table, noise=lambda k, x: torch.zeros_like(x)).step == 1
    with pytest.raises(ValueError, match="noise hook"):
        advance(state, DENOISER, table)


def test_errors_name_what_was_wrong():
    table = build("dpmpp-2m", GRID)
    with pytest.raises(ValueError, match="floating-point"):
        sample(DENOISER, table, torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \(4, 3\) for a state \(4, 2\)"):
        sample(lambda x, node: torch.zeros(4, 3), table, start())
    state = advance(initial(table, start()), DENOISER, table, 3)
    for index in ([True, False], [4], [-5]):
        with pytest.raises(ValueError, match="is no index into 4 samples"):
            state.take(index)
    assert len(state.take([]).x) == 0
    with pytest.raises(ValueError, match="cannot run -1 steps"):
        advance(state, DENOISER, table, -1)
    learnable = replace(table, weights=torch.tensor(table.weights))
    with pytest.raises(ValueError, match="lose the gradients"):
        learnable.in_basis("eps")
    np.testing.assert_array_equal(learnable.expanded().outputs, table.expanded().outputs)
    with pytest.raises(ValueError, match="another table"):
        advance(state, DENOISER, build("ddim", GRID))
    with pytest.raises(ValueError, match="2 seeds for a batch of 4"):
        sample(DENOISER, build("ddpm", GRID), start(), seeds=[1, 2])


@pytest.mark.parametrize("name", ["unipc-3", "heun", "deis-3", "sde-dpmpp-2m", "pndm"])
@pytest.mark.parametrize("form", ["edm", "flow"])
def test_a_table_in_another_form_gives_the_same_samples(name, form):
    """States scaled to the form, noise drawn alike, and the sample at clean data has no scale."""
    table = build(name, GRID)
    other = table.in_form(form)
    scale = other.grid.alpha[0] / table.grid.alpha[0]
    x, seeds = start().double(), range(len(start()))
    ours = sample(lambda y, node: torch.tanh(y / node.alpha), table, x, seeds=seeds)
    theirs = sample(lambda y, node: torch.tanh(y / node.alpha), other, x * scale, seeds=seeds)
    ends = other.grid.alpha[-1] / table.grid.alpha[-1]
    torch.testing.assert_close(theirs, ours * ends, rtol=1e-10, atol=1e-12)
    back = other.in_form("vp")
    np.testing.assert_allclose(back.weights, table.in_basis(back.basis).weights, atol=1e-12)


def test_the_tail_of_a_table_solves_constants_and_ends_alike():
    table = build("unipc-3", GRID)
    tail = table.tail(2)
    grid = tail.grid
    assert grid.nfe == GRID.nfe - 2
    kept = grid.sigma[1:] / grid.sigma[:-1]
    np.testing.assert_allclose(tail.carry, kept, atol=1e-14)
    np.testing.assert_allclose(
        tail.weights.sum(1), grid.alpha[1:] - grid.alpha[:-1] * kept, atol=1e-13
    )
    np.testing.assert_array_equal(tail.weights[3:, 1:], table.weights[5:, 3:])
    assert table.tail(0) is table
    with pytest.raises(ValueError, match="stage inside a step"):
        build("heun", GRID).tail(1)


def test_a_tail_draws_the_noise_of_its_past_at_once():
    table = build("sa-3", GRID)
    total = np.square(table.noise[2:]).sum(1)
    np.testing.assert_allclose(np.square(table.tail(2).noise).sum(1), total, rtol=1e-12)


def test_what_some_states_remember_is_zero_for_the_others():
    table = build("ddim", GRID)
    with_it = replace(initial(table, start(2)), memory={"d": torch.ones(2, 3)})
    without = initial(table, start(1))
    both = joined([without, with_it])
    assert both.memory["d"].tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1]]
    later = advance(without, DENOISER, table)
    with pytest.raises(ValueError, match="not at one step"):
        joined([later, with_it])
