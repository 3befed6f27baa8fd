from __future__ import annotations

import json

import numpy as np
import pytest
from fewstep import samplers
from fewstep.samplers import load_family, save_family
from fewstep.samplers.family import within
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
    with pytest.raises(ValueError, match="tables of 8, 3, 5 evaluations, and none within 2"):
        within(tables(), 2)


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
        ({"format": "poem"}, "not a tableau file"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "a.json"
    save_family(tables(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        load_family(path)
