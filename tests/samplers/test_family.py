from __future__ import annotations

import json

import numpy as np
import pytest
from fewstep import samplers
from fewstep.samplers import TooFewEvaluations, load_family, save_family
from fewstep.samplers.family import FAMILY, family_name, within
from fewstep.schedules import VPLinear, grid

LAW = VPLinear()


def tables():
    return {n: samplers.build("unipc-2", grid(LAW, n, "karras")) for n in (8, 3, 5)}


def test_a_family_comes_back(tmp_path):
    save_family(tables(), tmp_path / "new" / "a.json")
    found = load_family(tmp_path / "new" / "a.json")
    assert list(found) == [3, 5, 8]
    for nfe, table in tables().items():
        np.testing.assert_array_equal(found[nfe].weights, table.weights)
        np.testing.assert_array_equal(found[nfe].grid.label, table.grid.label)


def test_one_table_is_a_family_of_one(tmp_path):
    table = samplers.build("heun", grid(LAW, 4, "karras"))
    table.save(tmp_path / "a.json")
    assert list(load_family(tmp_path / "a.json")) == [table.nfe]


def test_the_most_that_fits_is_taken():
    assert within(tables(), 7).nfe == 5
    assert within(tables(), 50).nfe == 8
    with pytest.raises(TooFewEvaluations, match="tables of 8, 3, 5 evaluations, and none within 2"):
        within(tables(), 2)


def test_what_names_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_family(tables(), tmp_path / "runs" / "fit" / FAMILY)
    for name in ("runs/fit", "runs/fit/tables.json", "mnist-learned", "a.json", "no/where"):
        assert samplers.is_family(name)
    (tmp_path / "ddim").mkdir()
    for name in ("ddim", "unipc-3", "mnist-learnt"):
        assert not samplers.is_family(name)
    monkeypatch.chdir(tmp_path / "runs")
    assert samplers.is_family("fit")
    assert list(load_family("fit")) == [3, 5, 8]
    names = ("fit", "fit/tables.json", "/a/b.json", "mnist-learned")
    assert [family_name(each) for each in names] == ["fit", "fit", "b", "mnist-learned"]
    monkeypatch.chdir(tmp_path / "runs" / "fit")
    assert family_name("tables.json") == "fit"


@pytest.mark.parametrize("name", ["no.json", "no/where", "."])
def test_tables_that_are_not_there_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"no tables in {name}: there is no file"):
        load_family(name)


def test_a_table_under_another_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the table under 4 takes 3 evaluations"):
        save_family({4: tables()[3]}, tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "this fewstep reads 1"),
        ({"tables": [1]}, "this fewstep reads 1"),
        ({"tables": {"3": {}}}, "table 3"),
        ({"format": "poem"}, "not a file of one tableau"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "a.json"
    save_family(tables(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_family(path)
