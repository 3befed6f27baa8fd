from __future__ import annotations

import json

import pytest
from fewstep.eval.report import compare, load_results, quantities
from fewstep.eval.report.tables import gap

from .records import estimate, record

KEY = "frechet/rows-4"


def run(
    value, *, seed=0, spread=0.1, fingerprint="f", real="r", curve="ddim", replicates=0, **settings
):
    cell = record(curve, seed=seed, values={KEY: estimate(value, spread, replicates)})
    about = {"fingerprint": fingerprint, "reference": {"digest": real}}
    models = {"m": {"extractors": {"rows-4": about}}}
    return {"cells": [cell], "models": models, "config": {"name": "a", **settings}}


def test_a_difference_beyond_chance_stands_out():
    (_, table), *_ = compare(run(1.0), run(2.0))
    assert table.rows[0][0] == "ddim-005"
    assert table.bold == {(0, 3)}
    # Independent scatter three times the difference.
    (_, table), *_ = compare(run(1.0, spread=0.4), run(1.2, spread=0.4, replicates=1))
    assert table.bold == frozenset()


def test_settings_that_differ_and_cells_without_a_partner_are_named():
    a, b = run(1.0, end="zero", images=5), run(2.0, end="min", images=5, keep="png")
    a["config"]["name"] = "b"
    b["cells"] += run(2.0, curve="heun")["cells"]
    first, second, third, *_ = compare(a, b)
    assert first[0] == "Settings that differ"
    assert first[1].rows == [["end", '"zero"', '"min"'], ["keep", "null", '"png"']]
    assert second[1].rows == [["heun-005", "B"]]
    assert third[1].rows[0][0] == "ddim-005"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="not comparable"):
        compare(run(1.0), run(1.0, fingerprint="g"))
    with pytest.raises(ValueError, match="other real images"):
        compare(run(1.0), run(1.0, real="s"))
    with pytest.raises(ValueError, match="no cell in common"):
        compare(run(1.0), run(1.0, curve="heun"))


def test_results_are_found_in_a_folder(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(run(1.0)))
    assert load_results(tmp_path) == load_results(tmp_path / "results.json")
    with pytest.raises(FileNotFoundError, match="no results in"):
        load_results(tmp_path / "none")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"not the results\.json"):
        load_results(tmp_path)


def test_a_difference_is_the_second_minus_the_first():
    (_, table), *_ = compare(run(1.0), run(3.0, replicates=1))
    assert table.head[-1] == "B - A"
    assert table.rows[0][-1].startswith("2.0")


def test_two_standard_errors_of_the_difference_stand_out():
    (a,), (b,) = (run(1.0, replicates=seed)["cells"] for seed in (0, 1))
    _, error = gap(b, a, quantities([a])[0])
    for times, bold in ((1.5, frozenset()), (2.5, {(0, 3)}), (-2.5, {(0, 3)})):
        (_, table), *_ = compare(run(1.0), run(1.0 + times * error, replicates=1))
        assert table.bold == bold


def test_a_quantity_of_one_run_only_has_no_table():
    a, b = run(1.0), run(2.0)
    a["cells"][0]["values"]["recall/rows-4"] = a["cells"][0]["values"][KEY]
    assert len(compare(a, b)) == len(compare(b, a)) == 2
