"""Jump tables as JSON: schema `fewstep.jumps`, version 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..samplers.files import numbers, triangle
from . import noise
from .kernel import KERNELS

FORMAT = "fewstep.jumps"
VERSION = 1
FIELDS = (
    *("kernel", "noise", "time", "weights", "spread", "beta", "power", "anchor", "law"),
    *("name", "meta"),
)
KINDS = {"name": str, "kernel": dict, "noise": dict, "time": list, "anchor": list, "law": list}


def to_dict(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `JumpTable` as JSON: ragged rows; no spread of zeros, no power of ones."""
    kernel = fields["kernel"]
    kind = next(name for name, made in KERNELS.items() if type(kernel) is made)
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": fields["name"],
        "kernel": {"name": kind, **asdict(kernel)},
        "noise": noise.to_dict(fields["noise"]),
        "time": fields["time"].tolist(),
        "anchor": list(fields["anchor"]),
        "law": list(fields["law"]),
        "beta": fields["beta"].tolist(),
    }
    if (fields["power"] != 1).any():
        data["power"] = fields["power"].tolist()
    for key in ("weights", "spread"):
        if key == "weights" or fields[key].any():
            data[key] = [row[: n + 1].tolist() for n, row in enumerate(fields[key])]
    if fields["meta"]:
        data["meta"] = dict(fields["meta"])
    return data


def from_dict(data: Any, where: str) -> dict[str, Any]:
    """The arguments of `JumpTable` from JSON values; ValueError names the field and the row."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f'{where}: not a jump table (no "format": "{FORMAT}")')
    if data.get("version") != VERSION:
        raise ValueError(
            f"{where}: schema version {data.get('version')!r}; this fewstep reads version {VERSION}"
        )
    missing = [key for key in (*KINDS, "beta", "weights") if key not in data]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    for key, kind in {**KINDS, "meta": dict}.items():
        if not isinstance(data.get(key, kind()), kind):
            raise ValueError(f"{where}: {key} must be a {kind.__name__}, not {data[key]!r}")
    n = len(data["time"]) - 1
    if not all(type(k) is int for k in data["anchor"]):
        raise ValueError(f"{where}: anchor must hold whole numbers only")
    fields = {
        "kernel": known(KERNELS, data["kernel"], f"{where}: kernel"),
        "noise": known(noise.NOISES, data["noise"], f"{where}: noise"),
        "time": numbers(data["time"], n + 1, f"{where}: time"),
        "beta": numbers(data["beta"], n, f"{where}: beta"),
        "anchor": tuple(data["anchor"]),
        "law": tuple(data["law"]),
        "name": data["name"],
        "meta": data.get("meta", {}),
    }
    if "power" in data:
        fields["power"] = numbers(data["power"], n, f"{where}: power")
    for key in ("weights", "spread"):
        if key in data:
            fields[key] = triangle(data[key], n, f"{where}: {key}")
    return fields


def known(kinds: Mapping[str, Any], data: Mapping[str, Any], where: str) -> Any:
    """The value that {"name": ..., its numbers} stands for."""
    name, rest = str(data.get("name")), {key: each for key, each in data.items() if key != "name"}
    if name not in kinds:
        raise ValueError(f"{where} {name!r} is not one of {', '.join(kinds)}")
    try:
        return kinds[name](**rest)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
