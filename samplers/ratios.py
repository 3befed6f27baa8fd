"""The ratios of DC-Solver in a file: those that were found, and a polynomial for all between."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import configs
from ..schedules.base import Float
from ..storage import write_json
from . import files

FORMAT = "fewstep.ratios"
VERSION = 1
# Of a run, in its folder.
RATIOS = "ratios.json"
# Of the packaged files.
KIND = "ratios"
# Scales at which the published coefficients are written down.
GUIDANCE, NFE = 12.0, 50.0
# Steps by powers 0 to 3, guidance and NFE each by powers 2 to 0.
SHAPE = (4, 3, 3)
# Steps before this one, counted from 0, have too few outputs for an interpolation of order 2.
FIRST = 2

Range = tuple[float, float]


def powers(steps: int, first: int, nfe: float, guidance: float) -> Float:
    """What each coefficient has in the ratio of each step: float64 [steps - first, 4, 3, 3]."""
    share = np.vander(np.arange(first + 1, steps + 1) / steps, SHAPE[0], increasing=True)
    scale, number = np.vander([guidance / GUIDANCE, nfe / NFE], 3)
    return np.einsum("ij,k,l->ijkl", share, scale, number)


@dataclass(frozen=True, eq=False)
class Ratios:
    """Ratios by the number of evaluations, the guidance scale and the step (see `compensate`).

    `found` has those of searches, by (NFE, guidance). For all others there is the cascade
    polynomial regression of Zhao et al. 2024, "DC-Solver", as released: with i = 1, .., NFE,

        ratio[i] = sum_j c_j (i / NFE)^j,   c_j quadratic in guidance / 12, whose coefficients are
                                            quadratic in NFE / 50

    and 1 for i <= `first` (2, as published). `polynomial` [4, 3, 3] holds these numbers, highest
    powers first but for j, and is empty where nothing was fitted. A cubic through few numbers is
    soon anywhere: it is asked within `reach`, the ranges of NFE, guidance and ratios that it was
    fitted to.
    """

    found: Mapping[tuple[int, float], tuple[float, ...]]
    polynomial: Float = field(default_factory=lambda: np.zeros(0))
    reach: tuple[Range, Range, Range] | None = None
    first: int = FIRST
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (nfe, scale), ratios in self.found.items():
            if len(ratios) != nfe or not np.isfinite(ratios).all():
                raise ValueError(f"ratios of NFE {nfe} at guidance {scale:g}: got {list(ratios)}")
        if self.polynomial.size:
            if self.polynomial.shape != SHAPE or not np.isfinite(self.polynomial).all():
                raise ValueError(f"the polynomial of ratios must be {SHAPE} finite numbers")
            if self.reach is None:
                raise ValueError("a polynomial of ratios needs the ranges that it was fitted to")

    @classmethod
    def fitted(
        cls,
        found: Mapping[tuple[int, float], Sequence[float]],
        first: int = FIRST,
        **meta: Any,
    ) -> Self:
        """Ratios of several searches, with the polynomial of least squares through them.

        Those before step `first` are not looked at. Powers that too few numbers of evaluations or
        scales could tell apart are left out; with one (NFE, guidance) there is none. All steps
        count alike.
        """
        known = {key: tuple(map(float, each)) for key, each in found.items()}
        rows = [key for key in known if key[0] > first]
        nfes, scales = {nfe for nfe, _ in rows}, {scale for _, scale in rows}
        if len(rows) < 2:
            return cls(known, first=first, meta=meta)
        power = np.indices(SHAPE)
        kept = (2 - power[1] < len(scales)) & (2 - power[2] < len(nfes))
        matrix = np.concatenate([powers(nfe, first, nfe, scale) for nfe, scale in rows])
        values = np.concatenate([known[key][first:] for key in rows])
        polynomial = np.zeros(SHAPE)
        polynomial[kept] = np.linalg.lstsq(matrix[:, kept], values, rcond=1e-10)[0]
        return cls(known, polynomial, (span(nfes), span(scales), span(values)), first, meta)

    def at(self, nfe: int, guidance: float = 1.0) -> tuple[float, ...]:
        """The ratios of one run: those found for it, else those of the polynomial.

        Beyond what that was fitted to, the nearest NFE and guidance are taken, and ratios are
        clamped, each with a warning. ValueError if there is no polynomial.
        """
        if (nfe, guidance) in self.found:
            return self.found[nfe, guidance]
        if self.reach is None:
            known = ", ".join(f"{n} at guidance {s:g}" for n, s in self.found)
            raise ValueError(f"no ratios for NFE {nfe} at guidance {guidance:g}; there is {known}")
        near = nearest(nfe, self.reach[0], f"NFE {nfe}")
        scale = nearest(guidance, self.reach[1], f"guidance {guidance:g}")
        values = (powers(nfe, self.first, near, scale) * self.polynomial).sum((1, 2, 3))
        low, high = self.reach[2]
        clamped = np.clip(values, low, high)
        for step in np.flatnonzero(clamped != values):
            nearest(
                values[step],
                self.reach[2],
                f"the ratio {values[step]:.3g} of step {step + self.first + 1}",
            )
        return (*(1.0,) * min(self.first, nfe), *clamped.tolist())

    def save(self, path: str | Path) -> None:
        """Write as JSON (schema `fewstep.ratios`, version 1), atomically."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "found": [
                {"nfe": nfe, "guidance": scale, "ratios": list(self.found[nfe, scale])}
                for nfe, scale in sorted(self.found)
            ],
        }
        if self.reach is not None:
            names = ("nfe", "guidance", "ratios")
            data["polynomial"], data["first"] = self.polynomial.tolist(), self.first
            data["reach"] = {name: list(each) for name, each in zip(names, self.reach, strict=True)}
        write_json(Path(path), {**data, "meta": dict(self.meta)})

    @classmethod
    def load(cls, name: str | Path) -> Ratios:
        """The ratios of a file, a run's folder, or of `packaged`; ValueError for another file."""
        path = configs.packaged(KIND) / f"{name}.json" if str(name) in packaged() else Path(name)
        path = path / RATIOS if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"no ratios in {name}: there is no file {path}; with fewstep comes "
                f"{', '.join(packaged())}"
            )
        data = files.read(path)
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (
            FORMAT,
            VERSION,
        ):
            raise ValueError(f"{path}: not a file of ratios (format {FORMAT}, version {VERSION})")
        try:
            found = {
                (int(each["nfe"]), float(each["guidance"])): tuple(map(float, each["ratios"]))
                for each in data["found"]
            }
            if "polynomial" not in data:
                return cls(found, meta=data.get("meta", {}))
            nfe, scale, ratio = (
                (float(data["reach"][key][0]), float(data["reach"][key][1]))
                for key in ("nfe", "guidance", "ratios")
            )
            polynomial = np.array(data["polynomial"], dtype=np.float64)
            first, meta = int(data.get("first", FIRST)), data.get("meta", {})
            return cls(found, polynomial, (nfe, scale, ratio), first, meta)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error!r}") from error


def packaged() -> list[str]:
    """The names of the files of ratios that come with fewstep."""
    return sorted(path.stem for path in configs.packaged(KIND).glob("*.json"))


def span(values: Any) -> Range:
    """The least and the greatest."""
    return float(min(values)), float(max(values))


def nearest(value: float, limits: Range, what: str) -> float:
    """The value within limits, with a warning where it was not."""
    inside = min(max(value, limits[0]), limits[1])
    if inside != value:
        warnings.warn(
            f"{what} is beyond {limits[0]:.3g} to {limits[1]:.3g}, for which these ratios are: "
            f"{inside:.3g} is taken",
            stacklevel=3,
        )
    return inside
