"""Schedules as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from .base import Schedule
from .edm import EDM
from .flow import FlowMatching
from .vp import VPCosine, VPDiscrete, VPLinear

KINDS: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (VPLinear, VPCosine, VPDiscrete, EDM, FlowMatching)
}


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """The kind of a schedule and its parameters; ValueError for a kind of your own."""
    kind = type(schedule).__name__
    if kind not in KINDS:
        raise ValueError(f"only {', '.join(KINDS)} can be written to a file, not {kind}")
    values = {
        name: np.asarray(value).tolist()
        for name, value in asdict(schedule).items()  # type: ignore[call-overload]
        if value is not None
    }
    return {"kind": kind, **values}


def from_dict(data: Any) -> Schedule:
    """Inverse of `to_dict`; ValueError says what is wrong."""
    if not isinstance(data, dict) or data.get("kind") not in KINDS:
        raise ValueError(f"schedule: 'kind' must be one of {', '.join(KINDS)}")
    parameters = {name: value for name, value in data.items() if name != "kind"}
    try:
        return KINDS[data["kind"]](**parameters)
    except TypeError as error:
        raise ValueError(f"schedule {data['kind']}: {error}") from error
