"""Changes of outputs, beside the released code and beside denoisers that do the same by hand."""

from __future__ import annotations

import json
from pathlib import Path

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import (
    analytic_first_step,
    build,
    build_within,
    compensate,
    dualfast,
    exact,
    unipc,
)
from fewstep.schedules import EDM, FlowMatching, Grid, VPLinear

from .problems import SCHEDULES, SOLVERS

TRACED = json.loads((Path(__file__).parent / "data" / "dc_solver.json").read_text())
LAM = np.linspace(-2.5, 3, 8)
RATIOS = [1, 1, 0.8, 1.3, 0.6, 1.1, 0.9]
DENOISER = exact.mixture([[1.0, -1], [0.5, 2]], [0.4, 0.6], std=[0.3, 0.5])
PREDICTORS = ["ddim", "dpmpp-2m", "ab-3", "unip-3"]


def start(grid):
    z = torch.randn((4, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return grid.sigma[0] * z


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


class Replaced:
    """A denoiser that gives, in place of what it finds, a combination with what it found before."""

    def __init__(self, change):
        self.change, self.calls, self.nodes, self.given = change, [], [], []

    def __call__(self, x, node):
        x0 = DENOISER(x, node)
        eps = (x - node.alpha * x0) / node.sigma
        self.nodes.append(node)
        self.calls.append((x, x0, eps))
        self.given.append(self.change(self))
        return self.given[-1]


@pytest.mark.parametrize("case", TRACED, ids=lambda case: f"{case['law']}-{len(case['ratios'])}")
def test_compensated_rows_are_those_of_the_released_code(case):
    """Its states for unit impulses: UniPC-3 in x0, bh1, with correctors that see no ratio."""
    grid = Grid.from_times(
        SCHEDULES[case["law"]],
        np.array(case["times"]) * (1000 if case["law"] == "sd" else 1) - (case["law"] == "sd"),
    )
    table = build("unipc-3", grid, variant="bh1", compensate=case["ratios"])
    full = table.expanded()
    for k, state in enumerate(case["states"]):
        ours = [full.start[k], *full.outputs[k, :k]]
        np.testing.assert_allclose(ours, state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", PREDICTORS)
def test_a_compensated_predictor_is_one_whose_outputs_are_interpolated(name, order, overwrite):
    grid = Grid.from_lams(VPLinear(), LAM)

    def interpolated(seen):
        n = len(seen.calls) - 1
        if n == 0:
            return seen.calls[0][1]
        at = RATIOS[n] * seen.nodes[n].time + (1 - RATIOS[n]) * seen.nodes[n - 1].time
        first = max(n - order, 0)
        times = [node.time for node in seen.nodes[first : n + 1]]
        older = seen.given[first:n] if overwrite else [x0 for _, x0, _ in seen.calls[first:n]]
        values = torch.stack([*older, seen.calls[n][1]]).numpy()
        # The polynomial itself, by its coefficients about the newest time.
        moved = np.array(times) - times[-1]
        flat = values.reshape(len(values), -1)
        matrix = np.vander(moved, increasing=True)
        found = np.vander([at - times[-1]], len(times), increasing=True) @ np.linalg.solve(
            matrix, flat
        )
        return torch.from_numpy(found.reshape(values.shape[1:]))

    expected = fewstep.sample(Replaced(interpolated), build(name, grid), start(grid))
    table = compensate(build(name, grid), RATIOS, order=order, overwrite=overwrite)
    close(fewstep.sample(DENOISER, table, start(grid)), expected)


@pytest.mark.parametrize("reference", ["previous", "first"])
@pytest.mark.parametrize("law", [VPLinear(), EDM(), FlowMatching()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize("name", [*PREDICTORS, "unipc-3", "deis-3", "ipndm-4", "heun"])
def test_dualfast_is_a_denoiser_that_moves_the_noise_on(name, law, reference):
    table = build(name, Grid.from_lams(law, LAM))
    grid = table.grid
    strength = 0.2 * np.arange(grid.nfe) / (grid.nfe - 1)

    def moved(seen):
        n = len(seen.calls) - 1
        x, _, eps = seen.calls[n]
        earlier = seen.calls[0 if reference == "first" else max(n - 1, 0)][2]
        replaced = (1 + strength[n]) * eps - strength[n] * earlier
        return (x - seen.nodes[n].sigma * replaced) / seen.nodes[n].alpha

    expected = fewstep.sample(Replaced(moved), table, start(grid))
    changed = dualfast(table, 0.2, reference=reference)
    close(fewstep.sample(DENOISER, changed, start(grid)), expected)
    # In another basis, and with the strengths one by one, it is the same.
    other = dualfast(table.in_basis("eps"), strength, reference=reference).in_basis("x0")
    np.testing.assert_allclose(other.weights, changed.in_basis("x0").weights, atol=1e-10)


@pytest.mark.parametrize("name", ["ab-3", "deis-3"])
def test_dualfast_in_the_first_order_part(name):
    """What a row has of DDIM is of the output that is moved, the rest of the network's own."""
    grid = Grid.from_lams(VPLinear(), LAM)
    table = build(name, grid)
    x, outputs, noises = start(grid), [], []
    for n, node in enumerate(grid.nodes[:-1]):
        x0 = DENOISER(x, node)
        noises.append((x - node.alpha * x0) / node.sigma)
        outputs.append(noises[-1] if table.basis == "eps" else x0)
        c = 0.3 * n / (grid.nfe - 1)
        moved = (1 + c) * noises[n] - c * noises[max(n - 1, 0)]
        if table.basis == "x0":
            moved = (x - node.sigma * moved) / node.alpha
        row = table.weights[n, : n + 1]
        x = table.carry[n] * x + sum(w * m for w, m in zip(row, outputs, strict=True))
        x = x + row.sum() * (moved - outputs[n])
    changed = dualfast(table, 0.3, scope="first-order")
    close(fewstep.sample(DENOISER, changed, start(grid)), x)
    assert np.abs(changed.weights - dualfast(table, 0.3).weights).max() > 1e-3


GUESSES = {"eps": "eps", "number": 0.3, "image": np.array([0.3, -0.2])}


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc-3", "deis-3", "ipndm-4"])
def test_a_first_step_by_its_guess(name, guess):
    """One call less; the rest as if the network had said it."""
    grid = Grid.from_lams(VPLinear(), LAM)
    table = build(name, grid)

    def guessed(seen):
        x, x0, _ = seen.calls[-1]
        node = seen.nodes[-1]
        if node.index:
            return x0
        if guess == "eps":
            # eps = x, as of a state of unit variance.
            return (x - node.sigma * x) / node.alpha
        return torch.as_tensor(GUESSES[guess], dtype=torch.float64).expand_as(x)

    spared = analytic_first_step(table, GUESSES[guess])
    assert spared.nfe == table.nfe - 1
    expected = fewstep.sample(Replaced(guessed), table, start(grid))
    close(fewstep.sample(DENOISER, spared, start(grid)), expected)


def test_a_spared_step_is_spent_elsewhere():
    """Within a budget there is a step more, and from pure noise by the mean of the data too."""

    def nodes(steps):
        return fewstep.grid(FlowMatching(), steps)

    table = build_within("unipc-3", 5, nodes, analytic_first_step=0.1)
    assert (table.nfe, table.grid.nfe) == (5, 6)
    plain = build_within("unipc-3", 5, nodes)
    assert (plain.nfe, plain.grid.nfe) == (5, 5)


def test_what_changes_nothing_is_the_solver_to_the_last_bit():
    for law in ("sd", "edm", "flow", "zero-snr"):
        for name in SOLVERS:
            grid = fewstep.grid(SCHEDULES[law], 6, "uniform")
            if name.startswith("pndm") and grid.alpha[0] == 0:
                continue
            table = build(name, grid)
            same = [dualfast(table, 0.0)]
            if not table.grid.stage.any():
                same += [compensate(table, 1.0), build(name, grid, compensate=[1.0] * 6)]
            for each in same:
                assert np.array_equal(each.weights, table.weights), (law, name)
                assert np.array_equal(each.carry, table.carry)
                assert np.array_equal(each.noise, table.noise)


def test_constant_outputs_are_still_solved_exactly():
    """Interpolation, and what is moved between equal predictions of x0, keeps sums of rows."""
    grid = fewstep.grid(SCHEDULES["sd"], 6, "karras")
    table = build("unipc-3", grid, compensate=[1, 1, 0.7, 1.2, 0.8, 1.1])
    sums = grid.alpha[1:] - grid.alpha[:-1] * grid.sigma[1:] / grid.sigma[:-1]
    np.testing.assert_allclose(table.weights.sum(1), sums, atol=1e-12)
    assert np.abs(table.weights - build("unipc-3", grid).weights).max() > 1e-2


def test_gradients_flow_to_the_ratios():
    grid = Grid.from_lams(VPLinear(), LAM)
    table, plain = unipc(grid), unipc(grid, corrector=False)
    ratios = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)

    def end(values):
        return fewstep.sample(
            DENOISER, compensate(table, values, predictor=plain), start(grid)
        ).sum()

    assert torch.autograd.gradcheck(end, (ratios,), eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(end(ratios), ratios)
    assert (gradient[1:] != 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: compensate(t, [1.0, 1.0]), "7 steps take 7 ratios"),
        (lambda t: compensate(t, float("nan")), "must be finite"),
        (lambda t: compensate(t, 1.1, order=0), "at least 1, not 0"),
        (lambda t: compensate(build("heun", t.grid), 1.1), "stages"),
        (lambda t: dualfast(t, [0.1]), "7 steps take one finite strength, or 7"),
        (lambda t: dualfast(t.in_basis("v"), 0.1), "not v"),
        (lambda t: analytic_first_step(analytic_first_step(t)), "no first evaluation"),
        (
            lambda t: analytic_first_step(build("ddim", fewstep.grid(FlowMatching(), 4))),
            "begins at pure noise",
        ),
        (lambda t: build("unipc-3", t.grid, compensate={"ratio": 1.1}), "ratio"),
        (lambda t: build("unipc-3", t.grid, compensate={"ratios": 1.1, "guidance": 2}), "guidance"),
        (lambda t: dualfast(t, 0.1, reference="prev"), "one of previous, first"),
        (lambda t: dualfast(t, 0.1, scope="al"), "one of all, first-order"),
        (lambda t: analytic_first_step(t, "mean"), "not 'mean'"),
        (lambda t: analytic_first_step(t, True), "not True"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(build("unipc-3", Grid.from_lams(VPLinear(), LAM)))
