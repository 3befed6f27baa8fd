from __future__ import annotations

import math

import pytest
from fewstep.eval.report.points import (
    RMSE,
    SECONDS,
    Point,
    main_quantity,
    panels_of,
    pareto,
    points,
    quantities,
)

from .records import estimate, record


def value(number, spread=0.1, seed=0):
    return {"frechet/rows-4": estimate(number, spread, seed)}


def test_distances_come_first_and_times_last():
    some = record(values={"rmse": estimate(1.0), "recall/x": estimate(0.5), **value(2.0)})
    found = quantities([some])
    assert [q.key for q in found] == ["recall/x", "frechet/rows-4", "rmse", SECONDS.key]
    assert [q.lower_is_better for q in found] == [False, True, True, True]
    assert main_quantity(found).key == "frechet/rows-4"
    assert main_quantity([RMSE, SECONDS]) == RMSE


def test_only_inception_gives_an_fid():
    (q, _) = quantities([record(values={"frechet/inception": estimate(1.0)})])
    assert q.title == "FID"
    (q, _) = quantities([record(values={"frechet/inception-unverified": estimate(1.0)})])
    assert "FID" not in q.title
    assert "inception-unverified" in q.title


def test_seeds_are_averaged_with_their_errors():
    runs = [record(seed=s, values=value(2.0 + s, 0.1, s)) for s in (0, 1, 2)]
    quantity = quantities(runs)[0]
    (point,) = points(runs, quantity)
    errors = [r["values"]["frechet/rows-4"]["error"] for r in runs]
    assert (point.value, point.lowest, point.runs) == (pytest.approx(3.0), 2.0, 3)
    assert point.error == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 3)


def test_cells_that_diverged_have_no_point():
    lost = record(nfe=3, values={}, not_finite=[1, 2])
    kept = record()
    quantity = quantities([lost, kept])[0]
    assert [p.nfe for p in points([lost, kept], quantity)] == [5]


def test_panels_keep_their_order():
    found = panels_of([record(panel="b"), record(panel="a"), record(panel="b")])
    assert [(k, len(v)) for k, v in found.items()] == [("b", 2), ("a", 1)]


def point(seconds, value):
    return Point("c", 1, 1, value, None, value, 1, seconds)


def test_the_pareto_front_is_what_nothing_beats():
    found = [point(3, 1), point(1, 3), point(2, 4), point(2, 2), point(4, 1)]
    assert [(p.seconds, p.value) for p in pareto(found)] == [(1, 3), (2, 2), (3, 1)]
    best = pareto(found, lower_is_better=False)
    assert [(p.seconds, p.value) for p in best] == [(1, 3), (2, 4)]
