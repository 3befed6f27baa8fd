"""The benchmark runner: cell by cell, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import BenchConfig
from .frechet import FrechetDistance, Moments, half_split_distances, moments
from .generate import Draw, balanced, generate
from .images import quantise
from .plan import Cell, numbers, plan, reference_tables
from .reference import Reference, converge, rmse
from .store import digest, environment, fingerprint, read_arrays, write_arrays
from .subject import Subject

Progress = Callable[[int, int, str], None]
HALVES = 5


@dataclass(frozen=True, eq=False)
class Result:
    """One finished cell.

    `rmse` is to the reference's samples, `frechet` to the real data in the features that the run
    names, `seconds_per_image` the wall time of the sampling divided by the images. `pixels` are the
    samples as uint8 [N, C, H, W].
    """

    cell: Cell
    rmse: float
    frechet: float
    seconds_per_image: float
    pixels: Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """A benchmark in `folder`: settings, facts for the record, results so far, cells to come."""

    config: BenchConfig
    folder: Path
    subject: Subject
    facts: dict[str, Any]
    reference: Reference
    results: tuple[Result, ...]
    missing: tuple[Cell, ...]


class Counter:
    """Network calls x images done, of `total`; the one thing of a run that changes."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.done, self.total, self.text, self.progress = 0, total, "", progress

    def add(self, images: int) -> None:
        """Count one network call for a batch of `images`."""
        self.done += images
        self.progress(self.done, self.total, self.text)


def run_bench(
    config: BenchConfig,
    subject: Subject,
    folder: Path,
    progress: Progress = lambda done, total, text: None,
) -> Run:
    """Run what `folder` does not hold yet of `config`, and return all results.

    A finished cell is a file in `folder/cells` with the digest of everything that it depends on,
    and is computed again only if that changed; so is the reference. Ctrl-C ends the run with the
    results so far (during the reference, when there are none, KeyboardInterrupt is raised).
    `progress(done, total, text)` counts network calls times images.
    """
    draw = balanced(config.images, subject.classes, config.seed, config.batch_size, config.guidance)
    cells = plan(config, subject.schedule)
    exact, check = reference_tables(config, subject.schedule)
    checked = min(config.reference.check_images, config.images)
    facts: dict[str, Any] = {
        "environment": environment(subject.device),
        "hashes": {
            "config": digest(config.model_dump(mode="json")),
            "network": fingerprint(subject.network),
            "extractor": fingerprint(subject.extractor),
            "data": digest(subject.data.images.numpy()),
        },
        "seeds": [draw.seeds.start, draw.seeds.stop - 1],
    }
    numbers_of_all = [
        {k: v for k, v in facts["hashes"].items() if k != "config"},
        facts["environment"],
        *(list(draw.seeds), draw.labels.numpy(), draw.batch_size, draw.guidance, checked),
        *(*numbers(exact), *numbers(check)),
    ]
    root = digest(*numbers_of_all)
    keys = {cell.slug: digest(root, *numbers(cell.table)) for cell in cells}

    found = {cell.slug: stored_result(folder, cell, keys[cell.slug]) for cell in cells}
    target = stored_reference(folder, root)
    calls = sum(cell.table.nfe for cell in cells if found[cell.slug] is None) * config.images
    if target is None:
        calls += exact.nfe * config.images + check.nfe * checked
    counter = Counter(calls, progress)

    if target is None:
        counter.text = "reference"
        target = converge(subject, exact, check, draw, checked, counter.add)
        store_reference(folder, root, target)
    features = subject.features(quantise(subject.data.images))
    data = moments(features)
    facts["reference"] = {
        "rmse_to_check": target.disagreement,
        "checked_images": target.checked,
        "frechet": frechet(subject, quantise(target.samples), data),
        "frechet_between_halves_of_data": float(
            np.mean(half_split_distances(features, HALVES, config.seed))
        ),
    }
    try:
        for cell in cells:
            if found[cell.slug] is None:
                counter.text = cell.slug
                result = measure(subject, cell, draw, target, data, counter)
                store_result(folder, result, keys[cell.slug])
                found[cell.slug] = result
    except KeyboardInterrupt:
        counter.text = "interrupted"
    results = tuple(result for result in found.values() if result is not None)
    missing = tuple(cell for cell in cells if found[cell.slug] is None)
    return Run(config, folder, subject, facts, target, results, missing)


def measure(
    subject: Subject, cell: Cell, draw: Draw, target: Reference, data: Moments, counter: Counter
) -> Result:
    """Sample one cell and compare it with the reference and with the data."""
    start = time.perf_counter()
    samples = generate(subject, cell.table, draw, counter.add)
    seconds = time.perf_counter() - start
    pixels = quantise(samples)
    return Result(
        cell=cell,
        rmse=rmse(samples, target.samples),
        frechet=frechet(subject, pixels, data),
        seconds_per_image=seconds / len(samples),
        pixels=pixels,
    )


def frechet(subject: Subject, pixels: Tensor, data: Moments) -> float:
    """Frechet distance of uint8 images to the data, in the subject's features."""
    metric = FrechetDistance(data)
    metric.update(subject.features(pixels))
    return float(metric.compute())


def stored_result(folder: Path, cell: Cell, key: str) -> Result | None:
    """The finished cell in `folder`, None if it is not there or belongs to another setting."""
    arrays = read_arrays(folder / "cells" / f"{cell.slug}.npz", key)
    if arrays is None:
        return None
    return Result(
        cell,
        rmse=float(arrays["rmse"]),
        frechet=float(arrays["frechet"]),
        seconds_per_image=float(arrays["seconds_per_image"]),
        pixels=torch.from_numpy(arrays["pixels"]),
    )


def store_result(folder: Path, result: Result, key: str) -> None:
    """Write a finished cell, atomically."""
    names = ("rmse", "frechet", "seconds_per_image", "pixels")
    arrays = {name: np.asarray(getattr(result, name)) for name in names}
    write_arrays(folder / "cells" / f"{result.cell.slug}.npz", key, arrays)


def stored_reference(folder: Path, key: str) -> Reference | None:
    """The reference in `folder`, None if it is not there or belongs to another setting."""
    arrays = read_arrays(folder / "reference.npz", key)
    if arrays is None:
        return None
    samples = torch.from_numpy(arrays["samples"])
    return Reference(samples, float(arrays["disagreement"]), int(arrays["checked"]))


def store_reference(folder: Path, key: str, target: Reference) -> None:
    """Write the reference, atomically."""
    arrays = {name: np.asarray(value) for name, value in vars(target).items()}
    write_arrays(folder / "reference.npz", key, arrays)
