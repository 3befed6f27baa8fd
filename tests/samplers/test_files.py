"""Tableaux as files: bit-exact round trips, and bad files refused by name."""

from __future__ import annotations

import copy
import json
import os

import fewstep
import numpy as np
import pytest
import torch
from fewstep.samplers import Tableau, build
from fewstep.schedules import EDM, FlowMatching, Grid, VPDiscrete, VPLinear, betas
from hypothesis import given
from hypothesis import strategies as st

TABLES = {
    "ode": build("unipc-3", fewstep.grid(VPLinear(), 6)),
    "sde": build("sde-dpmpp-2m", fewstep.grid(VPDiscrete(betas()), 6, "trailing")),
    "two-noises": build("sa-3", fewstep.grid(EDM(), 7)),
    "stages": build("heun", fewstep.grid(EDM(), 4)),
    "pure-noise": build("ddpm", fewstep.grid(FlowMatching(3.0), 5, "uniform")),
    "one-step": build("ddim", fewstep.grid(VPLinear(), 1)),
    "eps": build("deis-3", fewstep.grid(VPLinear(), 5, end="min")),
    "velocity": build("ab-3", fewstep.grid(VPLinear(), 5, end="min")).in_basis("v"),
}
COLUMNS = ("time", "alpha", "sigma", "lam", "label", "stage")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same(a: Tableau, b: Tableau) -> None:
    for field in ("carry", "weights", "noise", "bias"):
        assert same_bits(getattr(a, field), getattr(b, field)), field
    for column in COLUMNS:
        assert same_bits(getattr(a.grid, column), getattr(b.grid, column)), column
    assert (a.name, a.basis, dict(a.meta)) == (b.name, b.basis, dict(b.meta))


@pytest.mark.parametrize("name", TABLES)
def test_round_trip_is_exact(name, tmp_path):
    table = TABLES[name].renamed(name, source="a test", numbers=[1, 2.5], nested={"eta": 0.1})
    path = tmp_path / "new" / "folder" / "table.json"
    table.save(path)
    loaded = Tableau.load(path)
    assert_same(loaded, table)
    assert loaded.nfe == table.nfe
    assert loaded.stochastic == table.stochastic
    # And through text once more: saving what was loaded changes no byte.
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    assert_same(Tableau.from_dict(json.loads(json.dumps(table.to_dict()))), table)


@pytest.mark.parametrize("name", TABLES)
def test_the_file_is_strict_json(name, tmp_path):
    path = tmp_path / "table.json"
    TABLES[name].save(str(path))

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads(path.read_text(), parse_constant=refuse)
    assert (data["format"], data["version"]) == ("fewstep.tableau", 1)
    assert [len(row) for row in data["weights"]] == list(range(1, len(data["carry"]) + 1))
    assert ("noise" in data) == TABLES[name].stochastic


@pytest.mark.parametrize("name", TABLES)
def test_the_schedule_comes_back(name):
    """Loaded tables can still be given points between their nodes."""
    law = TABLES[name].grid.schedule
    loaded = Tableau.from_dict(json.loads(json.dumps(TABLES[name].to_dict()))).grid.schedule
    assert type(loaded) is type(law)
    times = np.linspace(law.t_min, law.t_max, 99)
    assert same_bits(loaded.lam(times), law.lam(times))
    assert (loaded.t_min, loaded.t_max) == (law.t_min, law.t_max)


def test_numbers_without_a_schedule_stay_without():
    grid = TABLES["ode"].grid
    bare = Grid(grid.time, grid.alpha, grid.sigma, grid.lam, grid.label)
    table = Tableau(bare, TABLES["ode"].carry, TABLES["ode"].weights)
    assert Tableau.from_dict(table.to_dict()).grid.schedule is None


def test_infinite_ends_come_back():
    lam = Tableau.from_dict(TABLES["pure-noise"].to_dict()).grid.lam
    assert (lam[0], lam[-1]) == (-np.inf, np.inf)
    label = Tableau.from_dict(TABLES["two-noises"].to_dict()).grid.label
    # c_noise of clean data.
    assert label[-1] == -np.inf


# Numbers whose decimal form is the hardest: tiny, huge, one bit apart.
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(numbers=st.lists(finite, min_size=9, max_size=9))
def test_any_numbers_come_back(numbers):
    weights, noise = np.zeros((2, 2)), np.zeros((2, 2))
    weights[0, 0], weights[1, 0], weights[1, 1] = numbers[:3]
    noise[0, 0], noise[1, 0], noise[1, 1] = numbers[3:6]
    grid = Grid.from_sigmas([2, 1, 0])
    table = Tableau(grid, numbers[6:8], weights, noise, meta={"n": numbers[8]})
    assert_same(Tableau.from_dict(json.loads(json.dumps(table.to_dict()))), table)


def broken(change) -> dict:
    """A good file's data after one change."""
    data = copy.deepcopy(TABLES["sde"].to_dict())
    change(data)
    return data


def edit(*keys, value):
    """Set data[keys[0]][keys[1]].. to a value."""

    def change(data: dict) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def drop(*keys):
    """Remove data[keys[0]][keys[1]].."""

    def change(data: dict) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def swap_nodes(data: dict) -> None:
    """Nodes 2 and 3 in the wrong order."""
    for key in ("time", "alpha", "sigma", "lam", "label"):
        column = data["grid"][key]
        column[2], column[3] = column[3], column[2]


BAD = [
    ("format", edit("format", value="other"), "not a file of one tableau"),
    ("no-format", drop("format"), "not a file of one tableau"),
    ("version", edit("version", value=3), "schema version 3; this fewstep reads versions 1 to 2"),
    ("no-version", drop("version"), "schema version None"),
    *[(f"no-{key}", drop(key), f"missing {key}") for key in ("name", "basis", "carry", "weights")],
    ("no-grid", drop("grid"), "missing grid"),
    *[
        (f"no-{key}", drop("grid", key), rf"missing grid\.{key}")
        for key in ("time", "alpha", "sigma", "lam", "label")
    ],
    ("name-type", edit("name", value=3), "name must be a str"),
    ("basis-type", edit("basis", value=["x0"]), "basis must be a str"),
    ("basis", edit("basis", value="score"), "basis 'score' is not one of"),
    ("grid-type", edit("grid", value=[1, 2]), "grid must be a dict"),
    ("grid-number", edit("grid", value=7), "grid must be a dict"),
    ("meta-type", edit("meta", value="text"), "meta must be a dict"),
    ("grid-words", edit("grid", "alpha", 1, value="high"), "high"),
    ("grid-null", edit("grid", "alpha", 1, value=None), "alpha is NaN at node 1"),
    ("grid-nan", edit("grid", "sigma", 2, value=float("nan")), "sigma is NaN at node 2"),
    ("grid-short", edit("grid", "lam", value=[0, 1]), "lam has shape"),
    ("grid-nested", edit("grid", "time", value=[[1], [0]]), "time has shape|has shape"),
    ("grid-lam", edit("grid", "lam", 3, value=-9.0), "node 3 has lam -9"),
    ("grid-order", swap_nodes, "node 3 .* is noisier than node 2"),
    ("law-type", edit("grid", "schedule", value=3), "schedule: 'kind' must be one of"),
    ("law-kind", edit("grid", "schedule", "kind", value="VPSigmoid"), "'kind' must be one of"),
    ("law-extra", edit("grid", "schedule", "shift", value=3.0), "schedule VPDiscrete: .*shift"),
    ("law-words", edit("grid", "schedule", "betas", value=["a", "b"]), "could not convert"),
    ("grid-extra", edit("grid", "shift", value=[1.0]), "shift"),
    ("carry-type", edit("carry", value=1.0), "carry must be a list of 6 numbers"),
    ("carry-short", edit("carry", value=[1.0] * 5), "carry must be a list of 6 numbers"),
    ("carry-words", edit("carry", 2, value="0.5"), "carry must hold numbers only"),
    ("carry-nan", edit("carry", 2, value=float("nan")), "carry row 2 is not finite"),
    ("weights-type", edit("weights", value={}), "weights: expected 6 rows"),
    ("weights-rows", drop("weights", 5), "weights: expected 6 rows"),
    ("row-long", edit("weights", 2, value=[1.0] * 4), "row 2 must be a list of 3 numbers"),
    ("row-short", edit("weights", 4, value=[1.0] * 4), "row 4 must be a list of 5 numbers"),
    ("row-type", edit("weights", 1, value=0.5), "row 1 must be a list of 2 numbers"),
    ("row-words", edit("weights", 3, 0, value="0.5"), "row 3 must hold numbers only"),
    ("row-null", edit("weights", 3, 1, value=None), "row 3 must hold numbers only"),
    ("row-bool", edit("weights", 3, 1, value=True), "row 3 must hold numbers only"),
    ("row-nested", edit("weights", 3, 1, value=[1.0]), "row 3 must hold numbers only"),
    ("row-nan", edit("weights", 3, 2, value=float("nan")), "weights row 3 is not finite"),
    ("row-inf", edit("weights", 5, 2, value=float("inf")), "weights row 5 is not finite"),
    ("noise-row", edit("noise", 2, value=[0.0]), "noise: row 2 must be a list of 3 numbers"),
    ("noise-nan", edit("noise", 4, 4, value=float("nan")), "noise row 4 is not finite"),
]


@pytest.mark.parametrize(("change", "message"), [pytest.param(*b[1:], id=b[0]) for b in BAD])
def test_bad_data_are_refused_by_name(change, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=message):
        Tableau.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2", b"weights: 3", b"\xff\xfe\x00", b'{"format": }']
)
def test_what_is_not_json_is_refused_with_the_path(content, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.json: not JSON"):
        Tableau.load(path)


@pytest.mark.parametrize("content", ["null", "3", '"text"', "[]", "{}"])
def test_other_json_is_refused_with_the_path(content, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"table\.json: not a file of one tableau"):
        Tableau.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Tableau.load(tmp_path / "nothing.json")


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    TABLES["ode"].save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TABLES["sde"].save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["table.json"]


@pytest.mark.parametrize("meta", [{"bad": float("nan")}, {"bad": object()}])
def test_what_json_cannot_hold_leaves_no_file(meta, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        TABLES["ode"].renamed("x", **meta).save(tmp_path / "table.json")
    assert os.listdir(tmp_path) == []


def test_coefficients_per_pixel_are_not_json():
    grid = Grid.from_sigmas([2, 1, 0])
    wide = np.zeros((2, 2, 1, 4, 4))
    for arrays in (
        {"carry": np.ones(2), "weights": wide},
        {"carry": np.ones((2, 1, 4, 4)), "weights": np.zeros((2, 2))},
    ):
        with pytest.raises(ValueError, match="plain numbers"):
            Tableau(grid, **arrays).to_dict()


def test_a_learned_table_is_saved_as_numbers(tmp_path):
    table = TABLES["ode"]
    learned = Tableau(
        table.grid,
        torch.tensor(table.carry, requires_grad=True),
        torch.tensor(table.weights, requires_grad=True),
        name=table.name,
        basis=table.basis,
        meta=table.meta,
    )
    learned.save(tmp_path / "table.json")
    assert_same(Tableau.load(tmp_path / "table.json"), table)
