from __future__ import annotations

import pytest
from fewstep.eval.report.plots import against_seconds
from fewstep.eval.report.points import points, quantities

from .records import estimate, record


def drawn(*times):
    """The axes of heun at NFE 3 where 4 were allowed, with these seconds per image."""
    value = {"frechet/rows-4": estimate(2.0)}
    records = [
        record(f"heun-{i}", 3, allowed=4, values=value, seconds_per_image=seconds)
        for i, seconds in enumerate(times)
    ]
    quantity = quantities(records)[0]
    (axes,) = against_seconds(points(records, quantity), quantity.title).axes
    return axes


def test_the_number_at_a_point_is_the_nfe_that_was_spent():
    assert [text.get_text() for text in drawn(0.02).texts] == ["3"]


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ((0.02, 0.1), {20: "20", 70: "70", 25: ""}),
        ((0.002, 2.0), {20: "20", 70: "", 500: "500"}),
        ((0.02, 0.022), {20: "20", 20.5: "20.5"}),
    ],
)
def test_times_are_plain_numbers_and_few_where_they_span_much(times, shown):
    name = drawn(*times).xaxis.get_major_formatter()
    assert {value: name(value, 0) for value in shown} == shown
