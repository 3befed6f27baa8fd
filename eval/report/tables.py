"""Tables of a benchmark: every quantity, the best at each NFE, agreement with papers, all cells."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..bench import PublishedConfig
from ..metrics import Estimate, difference
from .points import Point, Quantity, Record, number, points


class Table(NamedTuple):
    """Column names, rows of text, and the places (row, column) that stand out."""

    head: list[str]
    rows: list[list[str]]
    bold: frozenset[tuple[int, int]] = frozenset()


def shown(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def with_error(value: float, error: float | None) -> str:
    """A value with its standard error, at the error's digits."""
    if error is None or not math.isfinite(error) or error == 0:
        return shown(value)
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def by_nfe(records: Sequence[Record], quantity: Quantity, errors: bool = True) -> Table:
    """A quantity of a panel: a row for each curve, a column for each NFE, the best one bold.

    Values come with their standard errors, if `errors`. A cell that took fewer evaluations than its
    column allows says so: "0.12 (7)". A cell that diverged says "diverged".
    """
    asked = sorted({record["nfe_allowed"] for record in records})
    names = list(dict.fromkeys(record["curve"] for record in records))
    found = {(p.curve, p.nfe_allowed): p for p in points(records, quantity)}
    lost = Counter((r["curve"], r["nfe_allowed"]) for r in records if r["not_finite"])
    sign = 1 if quantity.lower_is_better else -1
    rows, bold = [], set()
    for name in names:
        places = [(name, nfe) for nfe in asked]
        texts = [cell_text(found.get(place), lost[place], errors) for place in places]
        rows.append([name, *texts])
    for column, nfe in enumerate(asked, start=1):
        there = {
            i: found[name, nfe]
            for i, name in enumerate(names)
            if (name, nfe) in found and not lost[name, nfe]
        }
        if there:
            best = min(there, key=lambda i: sign * there[i].value)
            bold.add((best, column))
    return Table(["solver", *(f"NFE {nfe}" for nfe in asked)], rows, frozenset(bold))


def cell_text(point: Point | None, diverged: int, errors: bool) -> str:
    """One cell of `by_nfe`; `diverged` is the number of first seeds that did."""
    if point is None:
        return "diverged" if diverged else ""
    text = with_error(point.value, point.error) if errors else shown(point.value)
    if point.runs > 1:
        text += f", min {shown(point.lowest)}"
    if diverged:
        text += f", {diverged} of {point.runs + diverged} diverged"
    return text if point.nfe == point.nfe_allowed else f"{text} ({point.nfe})"


def best(records: Sequence[Record], quantity: Quantity) -> Table:
    """The best curve at each NFE, and how far the next is behind on the same seeds."""
    sign = 1 if quantity.lower_is_better else -1
    rows = []
    for nfe in sorted({record["nfe_allowed"] for record in records}):
        there = [p for p in points(records, quantity) if p.nfe_allowed == nfe]
        there.sort(key=lambda p: sign * p.value)
        if not there:
            continue
        first = there[0]
        row = [f"{nfe}", first.curve, with_error(first.value, first.error), "", ""]
        if len(there) > 1:
            gap, spread = paired(records, quantity, there[1].curve, first.curve, nfe)
            row[3:] = [there[1].curve, with_error(gap, spread)]
        rows.append(row)
    return Table(["NFE", "best", quantity.title, "next", "behind by"], rows)


def paired(
    records: Sequence[Record], quantity: Quantity, a: str, b: str, nfe: int
) -> tuple[float, float | None]:
    """The mean over seeds of a - b at an NFE, and its standard error on the same samples."""
    side = {
        (r["curve"], r["seed"]): r
        for r in records
        if r["nfe_allowed"] == nfe and number(r, quantity) is not None
    }
    seeds = sorted({seed for curve, seed in side if curve == a} & {s for c, s in side if c == b})
    gaps = [gap(side[a, seed], side[b, seed], quantity) for seed in seeds]
    errors = [error for _, error in gaps if error is not None]
    mean = sum(value for value, _ in gaps) / max(len(gaps), 1)
    return mean, math.hypot(*errors) / len(gaps) if gaps and len(errors) == len(gaps) else None


def gap(a: Record, b: Record, quantity: Quantity) -> tuple[float, float | None]:
    """a - b of two records, and its standard error if they are of the same samples."""
    value = (number(a, quantity) or 0.0) - (number(b, quantity) or 0.0)
    sides = [estimate(record, quantity) for record in (a, b)]
    if any(side is None or len(side.sizes) < 2 for side in sides):
        return value, None
    first, second = (side for side in sides if side is not None)
    same = a["seed"] == b["seed"] and np.array_equal(first.sizes, second.sizes)
    return value, difference(first, second).error if same else math.hypot(first.error, second.error)


def estimate(record: Record, quantity: Quantity) -> Estimate | None:
    """A value of a record with its replicates."""
    found = record["values"].get(quantity.key)
    if found is None or found["value"] is None:
        return None
    parts = np.asarray(found["replicates"], dtype=np.float64)
    sizes = np.asarray(found["sizes"], dtype=np.float64)
    return Estimate(found["value"] * quantity.scale, parts * quantity.scale, sizes)


def agreement(records: Sequence[Record], published: PublishedConfig, key: str) -> Table:
    """Ours beside a paper's, with the relative difference, and whether it is within tolerance."""
    quantity = Quantity(key, "")
    ours = {(p.curve, p.nfe): p for p in points(records, quantity)}
    counts = {record["images"] for record in records}
    rows = []
    for curve, values in published.values.items():
        for nfe, theirs in values.items():
            point = ours.get((curve, nfe))
            if point is None:
                continue
            off = point.value / theirs - 1
            verdict = "agrees" if abs(off) <= published.tolerance else "differs"
            if published.images is not None and counts != {published.images}:
                verdict = f"not of {published.images:,} images"
            rows.append(
                [
                    curve,
                    f"{nfe}",
                    with_error(point.value, point.error),
                    f"{theirs:g}",
                    f"{off:+.1%}",
                    verdict,
                ]
            )
    head = ["solver", "NFE", "ours", "published", "difference", f"within {published.tolerance:.0%}"]
    return Table(head, rows)


def flat(record: Record) -> dict[str, Any]:
    """One cell as a flat mapping, the row of the CSV; errors as "NAME ±"."""
    head = {k: v for k, v in record.items() if k not in ("values", "not_finite")}
    head["diverged"] = bool(record["not_finite"])
    for name, each in record["values"].items():
        head |= {
            name: each["value"],
            f"{name} ±": each["error"],
            f"{name} unbiased": each["corrected"],
        }
    return head


def to_csv(records: Sequence[Record]) -> str:
    """All cells, one line each."""
    rows = [flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """A table as Markdown."""
    texts = [
        [f"**{text}**" if (i, j) in table.bold else text for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *texts]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def columns(records: Sequence[Record]) -> Mapping[str, list[Any]]:
    """All cells by column, for Parquet."""
    rows = [flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}
