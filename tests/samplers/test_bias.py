"""The bias of a table: every transform of it gives the same samples as the executor."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import Tableau, build, picture, sample
from fewstep.samplers.relations import eliminate

from .problems import SCHEDULES

GRID = fewstep.grid(SCHEDULES["sd"], 5, "karras", end="min")
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=5)
IMAGES = RNG.normal(size=(5, 1, 3, 3))
BIASES = pytest.mark.parametrize("bias", [NUMBERS, IMAGES], ids=["numbers", "images"])


def denoiser(x, node):
    return torch.tanh(x / node.alpha)


def start() -> torch.Tensor:
    return fewstep.noise(GRID, (2, 3, 3), range(4), dtype=torch.float64)


def table(bias, name: str = "unipc-3") -> Tableau:
    return replace(build(name, GRID), bias=bias)


def run(table: Tableau, x: torch.Tensor | None = None) -> torch.Tensor:
    return sample(denoiser, table, start() if x is None else x, seeds=range(4))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@BIASES
def test_a_row_adds_its_bias(bias):
    nothing = Tableau(GRID, np.full(5, 2.0), np.zeros((5, 5)), bias=bias)
    x = start()
    for row in bias:
        x = 2 * x + torch.from_numpy(np.asarray(row))
    close(run(nothing), x)
    single = sample(denoiser, nothing, start().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, x.float(), rtol=1e-5, atol=1e-4)


def test_no_bias_is_no_term():
    """Nothing is computed for it, and no bit changes."""
    plain = build("sa-3", GRID)
    zero = replace(plain, bias=np.zeros((5, 1, 3, 3)))
    assert plain.bias.shape == (5,)
    assert all(step.bias is None for each in (plain, zero) for step in each.steps)
    assert torch.equal(run(plain), run(zero))
    some = table([0, 0, 0.5, 0, 0])
    assert [step.bias for step in some.steps] == [None, None, 0.5, None, None]


@BIASES
@pytest.mark.parametrize("name", ["unipc-3", "heun", "sde-dpmpp-2m"])
@pytest.mark.parametrize("basis", ["eps", "v", "flow"])
def test_a_change_of_basis_keeps_the_samples(bias, name, basis):
    first = build(name, GRID)
    bias = np.resize(bias, (first.grid.nfe, *bias.shape[1:]))
    ours = replace(first, bias=bias)
    close(run(ours.in_basis(basis)), run(ours))
    close(run(ours.in_basis(basis).in_basis("x0")), run(ours))


def test_coefficients_per_pixel_change_basis_too():
    shape = (5, 1, 3, 3)
    weights = np.tril(RNG.normal(size=(1, 3, 3, 5, 5))).transpose(3, 4, 0, 1, 2)
    ours = Tableau(GRID, RNG.uniform(0.5, 1, shape), weights, bias=NUMBERS)
    other = ours.in_basis("v")
    assert other.weights.shape == (5, 5, 1, 3, 3)
    close(run(other), run(ours))
    scalar_carry = replace(ours, carry=np.ones(5), bias=IMAGES)
    close(run(scalar_carry.in_basis("eps")), run(scalar_carry))


@BIASES
def test_another_form_keeps_the_samples(bias):
    ours = table(bias)
    edm = ours.in_form("edm")
    ends = edm.grid.alpha / GRID.alpha
    close(run(edm, start() * ends[0]), run(ours) * ends[-1])


@BIASES
def test_expanded_and_back(bias):
    ours = table(bias).in_basis("eps")
    assert (ours.carry.shape, ours.weights.shape) == ((5,), (5, 5))
    states, outputs = [start()], []

    def record(state, x0):
        node = GRID.nodes[state.step - 1]
        outputs.append((states[-1] - node.alpha * x0) / node.sigma)
        states.append(state.x)

    sample(denoiser, ours, start(), callback=record)
    full = ours.expanded()
    for n, state in enumerate(states):
        terms = [w * m for w, m in zip(full.outputs[n], outputs, strict=True)]
        close(full.start[n] * start() + sum(terms) + torch.as_tensor(full.bias[n]), state)
    back = Tableau.from_expanded(GRID, full, basis="eps")
    close(run(back), run(ours))


@BIASES
def test_a_tail_adds_the_rest(bias):
    ours = table(bias)
    np.testing.assert_array_equal(ours.tail(2).bias, bias[2:])
    assert ours.tail(2).grid.nfe == 3


def test_relations_of_earlier_states_take_their_bias_along():
    """x[3] from x[1]: what state 2 got added does not count."""
    states = np.diag([2.0, 3.0, 0.0])
    states[2, 1] = 5.0
    rows = eliminate(states, np.zeros((3, 3)), np.zeros((3, 3)), bias=np.array([1.0, 10, 100]))
    x = 7.0
    seen = [x]
    for carry, bias in zip(rows.carry, rows.bias, strict=True):
        x = carry * x + bias
        seen.append(x)
    assert seen[2] == 3 * seen[1] + 10
    assert seen[3] == pytest.approx(5 * seen[1] + 100)


@BIASES
def test_copies_files_and_plain_numbers(bias, tmp_path):
    ours = table(bias)
    ours.save(tmp_path / "table.json")
    learned = replace(ours, bias=torch.tensor(bias, requires_grad=True))
    twins = (
        *(copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))),
        *(Tableau.load(tmp_path / "table.json"), learned.numeric(), ours.renamed("other")),
    )
    for twin in twins:
        np.testing.assert_array_equal(twin.bias, bias)
        assert not twin.bias.flags.writeable
    data = json.loads(json.dumps(ours.to_dict()))
    assert data["version"] == 2
    with pytest.raises(ValueError, match="lose the gradients"):
        learned.in_basis("eps")
    picture.heatmap(ours)


def test_rows_without_are_written_as_one_number():
    bias = IMAGES.copy()
    bias[1:] = 0
    data = table(bias).to_dict()
    assert data["bias"][1:] == [0.0] * 4
    np.testing.assert_array_equal(Tableau.from_dict(data).bias, bias)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "expected 5 entries"),
        ([0, 0, "1", 0, 0], "bias row 2 must hold numbers"),
        ([0, 0, [True], 0, 0], "bias row 2 must hold numbers"),
        ([0, [1.0], [1.0, 2.0], 0, 0], "shapes"),
        ([0, [[1.0], [1.0, 2.0]], 0, 0, 0], "bias"),
    ],
)
def test_bad_biases_in_files_are_refused(value, message):
    data = table(NUMBERS).to_dict() | {"bias": value}
    with pytest.raises(ValueError, match=message):
        Tableau.from_dict(data)


def test_bad_biases_are_refused():
    with pytest.raises(ValueError, match="bias has shape"):
        table(np.zeros(4))
    with pytest.raises(ValueError, match="bias row 3 is not finite"):
        table([0, 0, 0, np.nan, 0])


def test_gradients_flow_to_a_bias():
    bias = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    run(table(bias)).sum().backward()
    assert bias.grad is not None
    step = 1e-5
    for n in (0, 4):
        moved = np.zeros((5, 3))
        moved[n, 1] = step
        difference = (run(table(moved)) - run(table(-moved))).sum() / (2 * step)
        torch.testing.assert_close(bias.grad[n, 1], difference, rtol=1e-6, atol=1e-6)
