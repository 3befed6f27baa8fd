from __future__ import annotations

import copy
import json

import pytest
import torch
from fewstep.discrete import Absorb, Geometric, JumpTable, LogLinear, Uniform, build, nodes

TABLES = [
    build("theta-trapezoidal", Absorb(5), LogLinear(0.01), nodes(7), theta=0.3),
    build("theta-rk-2", Uniform(5), Geometric(), nodes(6)).renamed("mine", note=[1, 2]),
    build("tau-leaping", Uniform(3), Geometric(1e-3, 6.0), nodes(3, "sedd")),
    JumpTable(
        Absorb(2), LogLinear(), torch.tensor([1, 0.7, 0.1]), torch.eye(2) / 3, beta=[1.5, 0.1]
    ),
]


def arguments(**changes):
    given = {
        "kernel": Absorb(3),
        "noise": LogLinear(),
        "time": [1, 0.5, 0],
        "weights": torch.eye(2),
    }
    return given | changes


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_saved_table_is_the_same_bit_for_bit(table, tmp_path):
    table.save(tmp_path / "table.json")
    again = JumpTable.load(tmp_path / "table.json")
    for name in ("time", "weights", "spread", "beta"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    for name in ("kernel", "noise", "anchor", "law", "name", "meta", "uses", "live"):
        assert getattr(again, name) == getattr(table, name)


def test_defaults():
    table = JumpTable(**arguments())
    assert (table.nfe, table.clean, table.anchor, table.law) == (2, True, (0, 1), ("linear",) * 2)
    assert torch.equal(table.beta, torch.ones(2).double())
    assert not table.spread.any()
    assert table.node(1).total == LogLinear().total(0.5)
    assert not JumpTable(**arguments(time=[1, 0.5, 0.2])).clean


def test_a_table_does_not_share_what_it_was_given():
    weights = torch.eye(2, dtype=torch.float64)
    table = JumpTable(**arguments(weights=weights))
    weights[0, 0] = 7
    assert table.weights[0, 0] == 1
    learned = torch.eye(2, dtype=torch.float64, requires_grad=True)
    assert JumpTable(**arguments(weights=learned)).weights is learned
    assert not JumpTable(**arguments(weights=learned)).numeric().weights.requires_grad


def test_states_live_as_long_as_a_row_needs_them():
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    table = JumpTable(**arguments(time=[1, 0.6, 0.3, 0], weights=weights, anchor=(0, 0, 2)))
    assert table.uses == ((0,), (0, 1), (2,))
    assert table.live == ((0,), (), ())
    late = JumpTable(**arguments(time=[1, 0.6, 0.3, 0], weights=torch.eye(3), anchor=(0, 1, 1)))
    assert late.live == ((), (1,), ())


def test_phi_scales_the_rows():
    table = TABLES[2].scaled(torch.tensor([2.0, 1.0, 0.5]))
    factor = torch.tensor([[2.0], [1.0], [0.5]])
    torch.testing.assert_close(table.weights, factor * TABLES[2].weights)
    torch.testing.assert_close(table.spread, factor * TABLES[2].spread)
    with pytest.raises(ValueError, match="phi must be positive, got -1"):
        TABLES[2].scaled([1, -1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": [1, 0.5, 0.5]}, "node 1 is at 0.5 and node 2 at 0.5"),
        ({"time": [1.2, 0.5, 0]}, "times must lie in"),
        ({"time": [1]}, "at least one step"),
        ({"time": [1, torch.nan, 0]}, "time row 1 is not finite"),
        ({"weights": torch.ones(2, 2)}, "weights row 0 uses score 1"),
        ({"spread": torch.ones(2, 2)}, "spread row 0 uses score 1"),
        ({"weights": torch.eye(3)}, r"weights has shape \[3, 3\], not \[2, 2\]"),
        ({"weights": torch.eye(2) * torch.tensor([1, torch.inf])}, "weights row . is not finite"),
        ({"beta": [1, 0]}, "beta must be positive, row 1 has 0"),
        ({"power": [1, -1]}, "power must be positive, row 1 has -1"),
        ({"anchor": (0, 2)}, "row 1 cannot jump from state 2"),
        ({"anchor": (0,)}, "1 anchors"),
        ({"law": "quadratic"}, "law 'quadratic' of row 0"),
    ],
)
def test_what_no_table_may_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        JumpTable(**arguments(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("beta"), "missing beta"),
        (lambda d: d.update(format="fewstep.tableau"), "not a jump table"),
        (lambda d: d.update(version=2), "schema version 2"),
        (lambda d: d["kernel"].update(name="swap"), "kernel 'swap' is not one of uniform, absorb"),
        (lambda d: d["kernel"].update(states=1), "at least 2 states"),
        (lambda d: d["noise"].update(slope=1), "noise: .*slope"),
        (lambda d: d["weights"][1].append(0.5), "weights: row 1 must be a list of 2 numbers"),
        (lambda d: d["time"].__setitem__(0, "1"), "time must hold numbers only"),
        (lambda d: d["anchor"].__setitem__(0, 0.5), "anchor must hold whole numbers"),
        (lambda d: d.update(law="linear"), "law must be a list"),
    ],
)
def test_a_bad_file_says_what_is_wrong(change, message, tmp_path):
    data = copy.deepcopy(TABLES[0].to_dict())
    change(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"bad.json: .*{message}"):
        JumpTable.load(tmp_path / "bad.json")
