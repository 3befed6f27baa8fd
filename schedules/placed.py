"""A spacing in numbers: nodes that were found, for some numbers of steps, and carried to others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..storage import write_json
from .base import Float, Schedule, softplus
from .grid import End, Grid

FORMAT = "fewstep.spacing"
VERSION = 1
# Of a run, in its folder.
SPACING = "spacing.json"
# In lam: laws that went through float32 differ by that much at their ends.
CLOSE = 1e-5


@dataclass(frozen=True)
class Placed:
    """Nodes by their lam = log(alpha / sigma), for one or several numbers of steps.

    `lams` holds N + 1 rising values for N steps each; the first may be -inf (pure noise), the last
    +inf (clean data). On another noise schedule the nodes are those of the same lam. For another
    number of steps they are interpolated, see `levels`. ValueError names a bad node.
    """

    lams: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        counts = [len(each) - 1 for each in self.lams]
        if not counts or min(counts) < 1 or len({*counts}) < len(counts):
            raise ValueError(f"placed nodes: of 1 step or more, each number once; got {counts}")
        for steps, lams in zip(counts, self.lams, strict=True):
            with np.errstate(invalid="ignore"):
                rising = np.diff(lams) > 0
            if not rising.all():
                k = int(np.argmin(rising))
                raise ValueError(
                    f"placed nodes: of {steps} steps, node {k + 1} at lam {lams[k + 1]:.6g} comes "
                    f"after {lams[k]:.6g}; lam must rise strictly"
                )

    @classmethod
    def of(cls, *grids: Grid) -> Self:
        """The nodes of some grids, each of another number of steps."""
        if any(each.stage.any() for each in grids):
            raise ValueError("placed nodes: a grid has stages inside its steps; give the steps")
        return cls(tuple(tuple(each.lam.tolist()) for each in sorted(grids, key=lambda g: g.nfe)))

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps that nodes were placed for."""
        return tuple(len(each) - 1 for each in self.lams)

    def levels(self, steps: int) -> Float:
        """The lam of steps + 1 nodes, float64: as placed, or else interpolated.

        Interpolated are the nodes of the nearest larger number of steps, or of the largest there
        is: log(sigma / alpha) linearly against the share of steps (Sabour et al. 2024, "Align Your
        Steps", section 4), and from pure noise log(sigma / (alpha + sigma)), which is finite there.
        An end in clean data is no part of that: all nodes before it are. Both ends stay. Raises
        ValueError where there is one such node only.
        """
        held = dict(zip(self.steps, self.lams, strict=True))
        larger = [each for each in held if each >= steps]
        source = np.array(held[min(larger) if larger else max(held)])
        if len(source) == steps + 1:
            return source
        if np.isfinite(source[-1]):
            return resampled(source, steps + 1)
        if len(source) == 2 and steps > 1:
            raise ValueError(
                f"placed nodes: those of 1 step to clean data say nothing of {steps}; place some"
            )
        return np.append(resampled(source[:-1], steps), np.inf)

    def place(
        self, schedule: Schedule, steps: int, end: End = "zero", t_min: float | None = None
    ) -> Grid:
        """The nodes on a schedule.

        The last is clean data for `end` "zero", wherever they were placed to; for "min" it is
        `t_min`, else the one placed, else the schedule's. Raises ValueError if nodes are outside
        what the schedule has between its ends.
        """
        lam = self.levels(steps)
        if end == "zero":
            lam[-1] = np.inf
        elif t_min is not None or np.isposinf(lam[-1]):
            lam[-1] = schedule.lam(schedule.t_min if t_min is None else t_min)
            if lam[-1] - lam[-2] <= CLOSE:
                raise ValueError(
                    f"placed nodes: the last but one is at lam {lam[-2]:.6g}, and the end asked "
                    f"for at {lam[-1]:.6g}; they were placed for a run that ends in clean data"
                )
        low, high = schedule.lam([schedule.t_max, schedule.t_min])
        inside = lam if end == "min" else lam[:-1]
        bad = (inside < low - CLOSE) | (inside > high + CLOSE)
        if bad.any():
            k = int(bad.argmax())
            raise ValueError(
                f"placed nodes: node {k} is at lam {inside[k]:.6g} (sigma / alpha "
                f"{np.exp(-inside[k]):.6g}), and {schedule!r} has {low:.6g} to {high:.6g} only; "
                f"place nodes for this schedule"
            )
        with np.errstate(divide="ignore"):
            times = schedule.time(np.clip(lam, low, np.inf))
        # The ends as the schedule has them: a round trip through lam may leave the legal range.
        for time, value in ((schedule.t_max, low), (schedule.t_min, high)):
            times[np.isclose(lam, value, rtol=0, atol=CLOSE)] = time
        if end == "min" and t_min is not None:
            times[-1] = t_min
        return Grid.from_times(schedule, times)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, infinities as text; see `from_dict`."""
        nodes = {
            str(steps): [lam if math.isfinite(lam) else str(lam) for lam in lams]
            for steps, lams in zip(self.steps, self.lams, strict=True)
        }
        return {"format": FORMAT, "version": VERSION, "lam": nodes}

    @classmethod
    def from_dict(cls, data: Any, where: str = "spacing") -> Self:
        """Inverse of `to_dict`; ValueError says what is wrong."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"{where}: no nodes of a spacing: 'format' must be {FORMAT!r}")
        nodes = data.get("lam")
        if data.get("version") != VERSION or not isinstance(nodes, Mapping):
            raise ValueError(
                f"{where}: schema {data.get('version')!r}; this fewstep reads {VERSION}"
            )
        try:
            found = {int(steps): tuple(map(float, lams)) for steps, lams in nodes.items()}
            made = cls(tuple(found[steps] for steps in sorted(found)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        if made.steps != tuple(sorted(found)):
            raise ValueError(f"{where}: nodes of {made.steps} steps under {sorted(found)}")
        return made

    def save(self, path: str | Path) -> None:
        """Write JSON (schema `fewstep.spacing`, version 1), atomically."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The nodes in a file of `save`, or in a folder with `SPACING`.

        FileNotFoundError if there is none, and ValueError that says what is wrong with it.
        """
        file = Path(path)
        if file.is_dir():
            file = file / SPACING
        if not file.is_file():
            raise FileNotFoundError(f"no spacing in {path}: there is no file {file}")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not JSON ({error})") from error
        return cls.from_dict(data, str(file))


def coordinate(lam: Float) -> Float:
    """-lam = log(sigma / alpha); if it begins at pure noise, log(sigma / (alpha + sigma))."""
    return -softplus(lam) if np.isneginf(lam[0]) else -lam


def from_coordinate(y: Float, pure: bool) -> Float:
    """Inverse of `coordinate`."""
    if not pure:
        return -y
    with np.errstate(divide="ignore"):
        return np.log(np.expm1(-y))


def resampled(lam: Float, n: int) -> Float:
    """n nodes on the line through these, evenly by their number; both ends are exact."""
    y = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(lam)), coordinate(lam))
    found = from_coordinate(y, bool(np.isneginf(lam[0])))
    found[-1], found[0] = lam[-1], lam[0]
    return found


def is_placed(name: str) -> bool:
    """Whether a text means nodes in a file: a .json file, a path, or a folder with `SPACING`."""
    path = Path(name)
    return path.suffix == ".json" or path.name != name or (path / SPACING).is_file()


def spacing_name(name: str) -> str:
    """What a spacing is called: by its own name, like its file, or like the folder of its run."""
    path = Path(name)
    if not is_placed(name):
        return name
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.name == SPACING else path.stem
