from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from fewstep.eval.bench import PublishedConfig
from fewstep.eval.metrics import difference
from fewstep.eval.report.points import SECONDS, quantities
from fewstep.eval.report.tables import (
    Table,
    agreement,
    best,
    by_nfe,
    gap,
    paired,
    shown,
    to_csv,
    to_markdown,
    with_error,
)

from .records import estimate, record

KEY = "frechet/rows-4"


def value(number, spread=0.1, seed=0):
    return {KEY: estimate(number, spread, seed)}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((12.3456, 0.0123), "12.346 ± 0.012"),
        ((12.3456, 1.23), "12.3 ± 1.2"),
        ((1234.5, 12.3), "1234 ± 12"),
        ((1.5, None), "1.5"),
        ((1.5, 0.0), "1.5"),
        ((-0.02, 0.003), "-0.0200 ± 0.0030"),
    ],
)
def test_digits_are_those_of_the_error(arguments, text):
    assert with_error(*arguments) == text


def test_three_digits():
    assert [shown(x) for x in (0.012345, 123.456, 12345.6)] == ["0.0123", "123", "12346"]


def test_a_table_has_the_best_bold_and_says_what_was_spent():
    records = [
        record("ddim", 4, values=value(3.0)),
        record("heun", 3, allowed=4, values=value(2.0)),
        record("ddim", 8, values={}, not_finite=[7]),
        record("heun", 7, allowed=8, values=value(1.0)),
    ]
    quantity = quantities(records)[0]
    table = by_nfe(records, quantity)
    assert table.head == ["solver", "NFE 4", "NFE 8"]
    assert table.rows[0][0] == "ddim"
    assert table.rows[0][2] == "diverged"
    assert table.rows[1][1].endswith("(3)")
    assert table.bold == {(1, 1), (1, 2)}
    assert "**" in to_markdown(table)


def test_more_is_better_for_recall():
    records = [
        record(name, values={"recall/x": estimate(v)}) for name, v in (("a", 0.2), ("b", 0.9))
    ]
    assert by_nfe(records, quantities(records)[0]).bold == {(1, 1)}


def test_the_gap_of_paired_samples_has_a_small_error():
    shared = np.random.default_rng(0).standard_normal(10)
    a, b = estimate(3.0), estimate(2.0)
    a = a._replace(replicates=3.0 + shared)
    b = b._replace(replicates=2.0 + shared + 0.01 * np.arange(10))
    first, second = record("a", values={KEY: a}), record("b", values={KEY: b})
    quantity = quantities([first])[0]
    found, error = gap(first, second, quantity)
    assert found == pytest.approx(1.0)
    assert error == pytest.approx(difference(a, b).error)
    assert error < a.error / 10
    # Other seeds: the errors add up.
    elsewhere = record("b", seed=50, values={KEY: b})
    assert gap(first, elsewhere, quantity)[1] == pytest.approx(np.hypot(a.error, b.error))


def test_times_have_no_error():
    assert gap(record(nfe=4), record(nfe=8), SECONDS) == (pytest.approx(-4.0), None)


def test_the_best_at_each_nfe_and_the_next():
    records = [record(n, values=value(v, 0.1, 1)) for n, v in (("a", 3.0), ("b", 1.0), ("c", 2.0))]
    quantity = quantities(records)[0]
    (row,) = best(records, quantity).rows
    assert (row[1], row[3]) == ("b", "c")
    gap_, error = paired(records, quantity, "c", "b", 5)
    assert gap_ == pytest.approx(1.0)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_agreement_with_a_paper():
    published = PublishedConfig(
        source="x", tolerance=0.05, images=50, values={"a": {5: 2.9}, "b": {5: 1.2, 9: 1.0}}
    )
    records = [record(n, values=value(v)) for n, v in (("a", 3.0), ("b", 1.0))]
    rows = agreement(records, published, KEY).rows
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        ("a", "+3.4%", "agrees"),
        ("b", "-16.7%", "differs"),
    ]
    usual = published.model_copy(update={"images": 50_000})
    assert agreement(records, usual, KEY).rows[0][-1] == "not of 50,000 images"
    decisive = published.model_copy(update={"images": None})
    assert agreement(records, decisive, KEY).rows == rows


def test_the_csv_has_a_line_for_each_cell():
    rows = list(csv.DictReader(io.StringIO(to_csv([record(), record("b", values={})]))))
    assert float(rows[0][KEY]) == 1.0
    assert float(rows[0][f"{KEY} ±"]) > 0
    assert rows[1][KEY] == ""
    assert rows[1]["curve"] == "b"


def test_markdown_is_a_table():
    text = to_markdown(Table(["a", "b"], [["x", "1"]], frozenset({(0, 1)})))
    assert text == "| a | b |\n| --- | ---: |\n| x | **1** |"


def test_a_seed_that_diverged_is_said_and_takes_the_cell_out_of_the_best():
    records = [
        record("a", seed=0, values=value(1.0)),
        record("a", seed=9, values={}, not_finite=[9]),
        *(record("b", seed=seed, values=value(2.0)) for seed in (0, 9)),
    ]
    table = by_nfe(records, quantities(records)[0])
    assert table.rows[0][1].endswith("1 of 2 diverged")
    assert table.bold == {(1, 1)}
