"""What a report is made of: quantities, and their points for every curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..score import measure_of, title

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Quantity:
    """One kind of number in the records, under `key`; shown times `scale`."""

    key: str
    title: str
    lower_is_better: bool = True
    scale: float = 1.0


RMSE = Quantity("rmse", "RMSE to the converged samples")
SECONDS = Quantity("seconds_per_image", "milliseconds per image", scale=1000.0)


def quantities(records: Iterable[Record]) -> list[Quantity]:
    """All quantities that the records hold, distances to the data first and times last."""
    keys = list(dict.fromkeys(key for record in records for key in record["values"]))
    found = []
    for key in sorted(keys, key=lambda k: k == "rmse"):
        if key == "rmse":
            found.append(RMSE)
            continue
        name, _, extractor = key.partition("/")
        lower = measure_of(name).lower_is_better
        found.append(Quantity(key, title(name, extractor), lower))
    return [*found, SECONDS]


@dataclass(frozen=True)
class Point:
    """A quantity of a curve within an NFE: the mean over seeds, and what else is known of it.

    `error` is its standard error (None: not known), `lowest` the least over `runs` first seeds.
    """

    curve: str
    nfe_allowed: int
    nfe: int
    value: float
    error: float | None
    lowest: float
    runs: int
    seconds: float


def points(records: Sequence[Record], quantity: Quantity) -> list[Point]:
    """The points of one panel's records; cells that diverged have none."""
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if number(record, quantity) is not None:
            groups.setdefault((record["curve"], record["nfe_allowed"]), []).append(record)
    found = []
    for (curve, allowed), group in groups.items():
        values = [number(record, quantity) or 0.0 for record in group]
        errors = [error(record, quantity) for record in group]
        known = [each for each in errors if each is not None]
        together = math.hypot(*known) / len(group) if len(known) == len(group) else None
        seconds = sum(record["seconds_per_image"] for record in group) / len(group)
        mean = sum(values) / len(values)
        nfe = group[0]["nfe"]
        found.append(Point(curve, allowed, nfe, mean, together, min(values), len(group), seconds))
    return found


def number(record: Record, quantity: Quantity) -> float | None:
    """The number itself, in units of the report."""
    if quantity.key == SECONDS.key:
        value = record.get(SECONDS.key)
    else:
        value = record["values"].get(quantity.key, {}).get("value")
    return None if value is None else value * quantity.scale


def error(record: Record, quantity: Quantity) -> float | None:
    """Its standard error."""
    value = record["values"].get(quantity.key, {}).get("error")
    return None if value is None else value * quantity.scale


def panels_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each panel by its title."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["panel"], []).append(record)
    return found


def main_quantity(found: Sequence[Quantity]) -> Quantity:
    """What curves are judged by first: a Frechet distance to the data, else the RMSE."""
    return next((q for q in found if q.key.startswith("frechet/")), found[0])


def pareto(found: Sequence[Point], lower_is_better: bool = True) -> list[Point]:
    """The points that no other beats in both seconds and value, by rising seconds."""
    sign = 1 if lower_is_better else -1
    front: list[Point] = []
    for point in sorted(found, key=lambda p: (p.seconds, sign * p.value)):
        if not front or sign * point.value < sign * front[-1].value:
            front.append(point)
    return front
