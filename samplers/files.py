"""Tableaux as JSON: schema `fewstep.tableau`, version 1, or 2 with a bias."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..schedules import Grid
from ..schedules import files as schedules
from ..schedules.base import Float
from .basis import Basis

FORMAT = "fewstep.tableau"
VERSIONS = (1, 2)


def number(value: float) -> float | str:
    """JSON has no infinities; they are written as strings that float() reads."""
    return value if math.isfinite(value) else str(value)


def to_dict(
    grid: Grid,
    carry: Float,
    weights: Float,
    noise: Float,
    basis: Basis,
    name: str,
    meta: Mapping[str, Any],
    bias: Float,
) -> dict[str, Any]:
    """The arguments of `Tableau` as JSON values: ragged rows, all-zero noise and bias left out."""
    data: dict[str, Any] = {
        "format": FORMAT,
        # Programs that know no bias must not read a table with one.
        "version": 2 if bias.any() else 1,
        "name": name,
        "basis": basis,
        "grid": {
            "time": grid.time.tolist(),
            "alpha": grid.alpha.tolist(),
            "sigma": grid.sigma.tolist(),
            "lam": [number(v) for v in grid.lam.tolist()],
            "label": [number(v) for v in grid.label.tolist()],
        },
        "carry": carry.tolist(),
    }
    if grid.stage.any():
        data["grid"]["stage"] = grid.stage.tolist()
    if grid.schedule is not None:
        data["grid"]["schedule"] = schedules.to_dict(grid.schedule)
    for key, rows in (("weights", weights), ("noise", noise)):
        if key == "weights" or rows.any():
            data[key] = [row[: n + 1].tolist() for n, row in enumerate(rows)]
    if bias.any():
        # Of an image, the rows that have none are a number.
        data["bias"] = [row.tolist() if row.any() else 0.0 for row in bias]
    if meta:
        data["meta"] = dict(meta)
    return data


def from_dict(data: Any, where: str) -> dict[str, Any]:
    """The arguments of `Tableau` from JSON values; ValueError names the field and the row."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        hint = f"it is {found!r}" if found else f'no "format": "{FORMAT}"'
        raise ValueError(f"{where}: not a file of one tableau ({hint})")
    if data.get("version") not in VERSIONS:
        raise ValueError(
            f"{where}: schema version {data.get('version')!r}; this fewstep reads versions "
            f"{VERSIONS[0]} to {VERSIONS[-1]}"
        )
    missing = [key for key in ("name", "basis", "grid", "carry", "weights") if key not in data]
    for key, kind in (("name", str), ("basis", str), ("grid", dict), ("meta", dict)):
        if not isinstance(data.get(key, kind()), kind):
            raise ValueError(f"{where}: {key} must be a {kind.__name__}, not {data[key]!r}")
    missing += [
        f"grid.{key}"
        for key in ("time", "alpha", "sigma", "lam", "label")
        if key not in data.get("grid", {})
    ]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    try:
        columns = dict(data["grid"])
        law = columns.pop("schedule", None)
        grid = Grid(
            schedule=None if law is None else schedules.from_dict(law),
            **{key: np.array(value, float) for key, value in columns.items()},
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return {
        "grid": grid,
        "carry": numbers(data["carry"], grid.nfe, f"{where}: carry"),
        "weights": triangle(data["weights"], grid.nfe, f"{where}: weights"),
        "noise": triangle(data["noise"], grid.nfe, f"{where}: noise")
        if "noise" in data
        else np.zeros((0, 0)),
        "basis": data["basis"],
        "name": data["name"],
        "meta": data.get("meta", {}),
        "bias": images(data["bias"], grid.nfe, f"{where}: bias") if "bias" in data else np.zeros(0),
    }


def images(rows: Any, n: int, where: str) -> Float:
    """An array from n numbers, or nested lists of numbers of one shape; 0 is zero everywhere."""
    if not isinstance(rows, list) or len(rows) != n:
        raise ValueError(f"{where}: expected {n} entries, one per step of the grid")
    try:
        found = [np.array(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    bad = next((k for k, row in enumerate(found) if row.dtype.kind not in "if"), None)
    if bad is not None:
        raise ValueError(f"{where} row {bad} must hold numbers only")
    shapes = {row.shape for row in found if row.ndim}
    if len(shapes) > 1:
        raise ValueError(f"{where} has rows of the shapes {sorted(shapes)}")
    return np.stack(np.broadcast_arrays(*found)).astype(np.float64)


def triangle(rows: Any, n: int, where: str) -> Float:
    """A square array from n ragged rows of lengths 1..n."""
    if not isinstance(rows, list) or len(rows) != n:
        raise ValueError(f"{where}: expected {n} rows, one per step of the grid")
    square = np.zeros((n, n))
    for k, row in enumerate(rows):
        square[k, : k + 1] = numbers(row, k + 1, f"{where}: row {k}")
    return square


def numbers(values: Any, n: int, where: str) -> Float:
    """An array from a list of n JSON numbers."""
    if not isinstance(values, list) or len(values) != n:
        raise ValueError(f"{where} must be a list of {n} numbers")
    # numpy would take "1.5", true and null too.
    if not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{where} must hold numbers only")
    return np.array(values, dtype=np.float64)


def read(path: Path) -> Any:
    """Parse JSON; ValueError names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
