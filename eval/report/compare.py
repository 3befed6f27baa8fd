"""Two runs beside each other: which differences are more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...storage import read_json
from .points import Quantity, Record, error, number, quantities
from .tables import Table, gap, with_error

# Of a cell: see `identity`.
Identity = tuple[Any, ...]
# A difference of that many standard errors stands out.
SIGNIFICANT = 2


def load_results(folder: Path) -> Mapping[str, Any]:
    """The results.json of a run; FileNotFoundError if there is none, ValueError if it is none."""
    path = folder / "results.json" if folder.is_dir() else folder
    if not path.exists():
        raise FileNotFoundError(
            f"no results in {folder}: `fewstep bench` writes results.json there"
        )
    found = read_json(path)
    if not isinstance(found, dict) or "cells" not in found:
        raise ValueError(f"{path} is not the results.json of a benchmark")
    return found


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """What differs between two runs: settings, cells that one lacks, and every quantity, b - a.

    Cells are matched by model, guidance, solver, NFE, first seed and images; the errors of
    differences on the same seeds are those of paired samples. Differences beyond two standard
    errors are bold. Raises ValueError if a quantity was made from other features, or nothing
    matches.
    """
    check_same_features(a, b)
    left, right = ({identity(record): record for record in run["cells"]} for run in (a, b))
    keys = [key for key in left if key in right]
    if not keys:
        raise ValueError(
            "the runs have no cell in common: same model, guidance, solver, NFE, first seed, images"
        )
    shared = [
        quantity
        for quantity in quantities(left[key] for key in keys)
        if any(number(right[key], quantity) is not None for key in keys)
    ]
    found = [(quantity.title, table(quantity, left, right, keys)) for quantity in shared]
    first = [("Settings that differ", settings(a, b)), ("Cells of one run only", lone(left, right))]
    return [pair for pair in first if pair[1].rows] + found


def settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> Table:
    """The settings that the two runs do not share."""
    one, other = a["config"], b["config"]
    keys = [key for key in {**one, **other} if key != "name" and one.get(key) != other.get(key)]
    rows = [[key, *(json.dumps(run.get(key)) for run in (one, other))] for key in keys]
    return Table(["setting", "A", "B"], rows)


def lone(left: Mapping[Identity, Record], right: Mapping[Identity, Record]) -> Table:
    """The cells that only one of two runs has."""
    rows = [
        [record["slug"], name]
        for name, mine, others in (("A", left, right), ("B", right, left))
        for key, record in mine.items()
        if key not in others
    ]
    return Table(["cell", "only in"], rows)


def check_same_features(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """ValueError if features or real images of one name are not the same in the two runs."""
    for model, there in a["models"].items():
        here = b["models"].get(model, {}).get("extractors", {})
        for name, each in there["extractors"].items():
            if name in here and here[name]["fingerprint"] != each["fingerprint"]:
                raise ValueError(
                    f"{name} has other weights or another resize in the two runs "
                    f"({each['fingerprint']}, {here[name]['fingerprint']}): not comparable"
                )
            if name in here and here[name]["reference"]["digest"] != each["reference"]["digest"]:
                raise ValueError(
                    f"{model} was compared with other real images in the two runs "
                    f"({each['reference']}, {here[name]['reference']}): not comparable"
                )


def identity(record: Record) -> Identity:
    """What two cells must share to be set against each other."""
    return tuple(record[k] for k in ("model", "guidance", "curve", "nfe_allowed", "seed", "images"))


def table(
    quantity: Quantity,
    left: Mapping[Identity, Record],
    right: Mapping[Identity, Record],
    keys: list[Identity],
) -> Table:
    """One quantity of all cells of both."""
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for key in keys:
        a, b = number(left[key], quantity), number(right[key], quantity)
        if a is None or b is None:
            continue
        change, spread = gap(right[key], left[key], quantity)
        texts = [with_error(x, error(r, quantity)) for x, r in ((a, left[key]), (b, right[key]))]
        if spread is not None and abs(change) > SIGNIFICANT * spread:
            bold.add((len(rows), 3))
        rows.append([left[key]["slug"], *texts, with_error(change, spread)])
    return Table(["cell", "A", "B", "B - A"], rows, frozenset(bold))
