"""What is written down of a cell: its settings, its numbers, its first images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extractors import Outputs
from ..metrics import Estimate, half_split_distances
from ..parts import Arrays
from ..score import root_mean, score
from .contestant import Contestant
from .plan import Cell

HALVES = 3


@dataclass(frozen=True, eq=False)
class Result:
    """One finished cell: its `record`, as in results.json, and its first images, uint8."""

    cell: Cell
    record: dict[str, Any]
    pixels: Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """Converged samples [R, C, H, W], and what was measured of them.

    `record` has `rmse_to_check`, how far another solver ends from them, which was looked at on
    `checked_images`, and `values` as in a `Result`.
    """

    samples: Tensor
    record: dict[str, Any]


def about(cell: Cell, images: int) -> dict[str, Any]:
    """What a cell is, as the beginning of its record."""
    return {
        "slug": cell.slug,
        "panel": cell.panel.title,
        "model": cell.panel.model,
        "guidance": cell.panel.guidance,
        "seed": cell.seed,
        "curve": cell.curve,
        "solver": cell.table.name,
        "spacing": cell.spacing,
        "start": said(cell.solver.start),
        "shift": said(cell.solver.shift),
        "scale_eps": said(cell.solver.scale_eps),
        "nfe": cell.table.nfe,
        "nfe_allowed": cell.nfe,
        "images": images,
    }


def said(value: Any) -> str:
    """A setting in words, nothing for none."""
    return "" if value is None else str(value)


def outcome_of(ready: Contestant, arrays: Arrays) -> dict[str, Any]:
    """What was found out about a cell's samples."""
    count = len(arrays["seeds"])
    values = measured(ready, arrays)
    if "square_error" in arrays:
        values = {"rmse": root_mean(torch.from_numpy(arrays["square_error"]))} | values
    return {
        "values": written(values),
        "calls_per_image": float(arrays["calls"]) / count,
        "seconds_per_image": float(arrays["seconds"]) / count,
        "calls_per_second": float(arrays["calls"]) / float(arrays["seconds"]),
        "outside": float(arrays["outside"].mean()),
    }


def measured(ready: Contestant, arrays: Arrays) -> dict[str, Estimate]:
    """Every metric of every extractor, by "value/extractor"."""
    return {
        f"{name}/{which}": value
        for which, metrics in ready.metrics.items()
        for name, value in score(outputs_in(arrays, which), metrics).items()
    }


def outputs_in(arrays: Arrays, extractor: str) -> Outputs:
    """The outputs of one extractor among the arrays of a job."""
    names = (f"{extractor}/{kind}" for kind in Outputs._fields)
    return Outputs(*(torch.from_numpy(arrays[n]) if n in arrays else None for n in names))  # type: ignore[arg-type]


def written(values: dict[str, Estimate]) -> dict[str, Any]:
    """Estimates as JSON values, with what differences of two are made of."""
    return {
        name: {
            **each.summary,
            "replicates": each.replicates.tolist(),
            "sizes": each.sizes.tolist(),
        }
        for name, each in values.items()
    }


def provenance(ready: Contestant) -> dict[str, Any]:
    """What identifies a model and what its samples are compared with."""
    return {
        "fingerprint": ready.model.fingerprint,
        "extractors": {
            name: {
                "fingerprint": each.fingerprint,
                "facts": dict(each.facts),
                "reference": {
                    "n": known.features.n,
                    "digest": ready.reference_key(name),
                    **known.origin,
                },
                "between_halves": between_halves(known.members),
            }
            for (name, each), known in zip(
                ready.extractors.items(), ready.statistics.values(), strict=True
            )
        },
    }


def between_halves(members: Tensor | None) -> float | None:
    """The Frechet distance between halves of the real images: what sampling makes of zero."""
    if members is None or len(members) < 2 * members.shape[1] + 2:
        return None
    return float(np.mean(half_split_distances(members, HALVES)))
