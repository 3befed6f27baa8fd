from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.distill.tables.learned import Derived, LearnedTable
from fewstep.samplers.fit import fit_rows
from fewstep.schedules import EDM, FlowMatching, VPLinear, grid

from .problem import LAW, mixture, teacher

SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "ipndm-3", "deis-2")


@pytest.mark.parametrize("nfe", [3, 5, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_before_any_learning_it_is_the_table(solver, nfe):
    table = samplers.build(solver, grid(LAW, nfe, "quadratic"))
    found = LearnedTable(table, ("weights", "times", "labels"), base=solver).table()
    plain = table.in_basis("x0")
    np.testing.assert_allclose(found.grid.time, plain.grid.time, atol=1e-13)
    np.testing.assert_allclose(found.weights, plain.weights, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.carry, plain.carry, atol=1e-12)
    x = samplers.noise(table.grid, (16,), range(4)).double()
    ours, theirs = (samplers.sample(mixture(), each, x) for each in (found, table))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_it_begins_at_any_table_whatever_its_base():
    nodes, met = teacher(0, 50).trajectories([6, 20, 40])
    (table,) = fit_rows(met, nodes).tables
    found = LearnedTable(table, ("weights", "times"), base="ddim").table()
    np.testing.assert_allclose(found.weights, table.weights, atol=1e-12)
    np.testing.assert_allclose(found.grid.time, table.grid.time, atol=1e-13)


@pytest.mark.parametrize(
    ("law", "spacing"), [(VPLinear(), "lam"), (EDM(), "karras"), (FlowMatching(3.0), "uniform")]
)
def test_the_gradient_is_that_of_differences(law, spacing):
    table = samplers.build("unipc-2", grid(law, 3, spacing))
    module = LearnedTable(table, ("weights", "times", "labels"), base="unipc-2", free="all")
    denoise = samplers.exact.mixture([[-1.0, 0.5], [1.0, 0.0]], std=0.3)
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def denoiser(x, node):
        # A network that hears its label.
        return denoise(x, node) + 0.1 * x * node.label / table.grid.label[0]

    def loss():
        run = module()
        x = samplers.sample(denoiser, run.table, z * run.start, time_map=run.time_map)
        return x.square().sum()

    loss().backward()
    for parameter in module.parameters():
        for k in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[k] += sign * 1e-5
                    values.append(float(loss()))
                    parameter.view(-1)[k] -= sign * 1e-5
            truth = (values[0] - values[1]) / 2e-5
            assert float(parameter.grad.view(-1)[k]) == pytest.approx(truth, rel=2e-4, abs=2e-5)


def test_nodes_never_cross_and_the_rows_follow_them():
    table = samplers.build("unipc-3", grid(LAW, 5, "quadratic"))
    module = LearnedTable(table, ("times",), base="unipc-3")
    with torch.no_grad():
        module.times.copy_(torch.tensor([0.0, 3.0, -4.0, 2.0, -1.0, 0.5]))
    found = module.table()
    assert (np.diff(found.grid.time) < 0).all()
    assert found.grid.time[0] == pytest.approx(1.0)
    truth = samplers.build("unipc-3", found.grid)
    np.testing.assert_allclose(found.weights, truth.weights, atol=1e-12)


def test_only_what_is_named_is_a_parameter():
    table = samplers.build("ddim", grid(LAW, 4, "quadratic"))
    sizes = {
        what: sum(each.numel() for each in LearnedTable(table, (what,)).parameters())
        for what in ("weights", "times", "labels")
    }
    # Rows 0, 1 and 2 are free, and the last keeps constants exact.
    assert sizes == {"weights": 2 + 3 + 4 + 3, "times": 5, "labels": 4}


def test_a_last_row_that_is_not_free_stays_exact_on_constants():
    table = samplers.build("unipc-3", grid(LAW, 4, "quadratic"))
    module = LearnedTable(table, ("weights", "times"))
    with torch.no_grad():
        for each in module.parameters():
            each.add_(0.1 * torch.arange(each.numel()))
    found = module.table()
    assert found.weights[-1].sum() == pytest.approx(1.0)
    assert found.carry[-1] == pytest.approx(0.0, abs=1e-12)
    assert abs(found.weights[1].sum() - table.weights[1].sum()) > 0.1


def test_labels_move_without_their_nodes():
    table = samplers.build("ddim", grid(LAW, 3, "quadratic"))
    module = LearnedTable(table, ("labels",))
    with torch.no_grad():
        module.labels[1] = 0.25
    found = module.table()
    np.testing.assert_array_equal(found.grid.time, table.grid.time)
    shift = found.grid.label - table.grid.label
    assert shift.tolist() == pytest.approx([0, 0.25, 0, 0])


def test_a_function_of_numpy_has_a_gradient():
    time = torch.tensor([1.0, 0.6, 0.1, 0.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    (Derived.apply(time, lambda t: np.sin(3 * t[:-1])) @ weights).backward()
    truth = weights * 3 * torch.cos(3 * time.detach()[:-1])
    torch.testing.assert_close(time.grad[:-1], truth, rtol=1e-4, atol=1e-4)
    assert time.grad[-1] == 0


def test_other_tables_are_refused():
    nodes = grid(LAW, 4, "quadratic")
    for table in (samplers.build("ddpm", nodes), samplers.build("heun", nodes)):
        with pytest.raises(ValueError, match="only deterministic tables without stages"):
            LearnedTable(table)
    with pytest.raises(ValueError, match="has a bias"):
        LearnedTable(replace(samplers.build("ddim", nodes), bias=np.ones(4)))
    for base in ("heun", "ddpm"):
        with pytest.raises(ValueError, match=f"{base} takes other nodes than these"):
            LearnedTable(samplers.build("ddim", nodes), base=base)


def test_sums_of_a_bf16_network_are_not_in_bf16():
    """What rounding its outputs costs is a rounding; a state in bf16 loses more at every step."""
    nodes = grid(LAW, 20, "quadratic")
    table = LearnedTable(samplers.build("unipc-3", nodes)).table()
    x = samplers.noise(nodes, (16,), range(200))

    def network(x, node):
        return mixture()(x.bfloat16().float(), node).bfloat16()

    def rounded(x, node):
        return x.bfloat16().float()

    exact = samplers.sample(mixture(), table, x)
    run, whole = (
        float((samplers.sample(network, table, x, on_state=hook) - exact).abs().median())
        for hook in (None, rounded)
    )
    assert samplers.initial(table, x.bfloat16()).x.dtype == torch.float32
    # Half a unit in the last of eight places, of numbers about 1.
    assert run < 2**-9
    assert whole > 1.5 * run
