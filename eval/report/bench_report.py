"""The report of a benchmark: what is in it, and the files that it goes to."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...storage import write_atomically, write_json
from ..bench import Panel, Run
from ..images import save_grid, thumbnails
from ..score import INCEPTION
from .page import Picture, Section, markdown, page
from .panel import panel_sections
from .points import panels_of, quantities
from .tables import columns, to_csv

# A Frechet distance of papers is of that many samples.
USUAL = 50_000


def write_report(run: Run) -> Path:
    """Write everything that `run` shows into its folder; return the HTML page.

    report.html, report.md, results.csv, results.json, results.parquet (where pyarrow is installed),
    plots, and a grid of the first images of every cell.
    """
    folder = run.folder
    records = [result.record for result in run.results]
    for result in run.results:
        if len(result.pixels):
            save_grid(thumbnails(result.pixels), folder / "grids" / f"{result.cell.slug}.png")
    write_json(folder / "results.json", to_json(run))
    write_atomically(folder / "results.csv", to_csv(records))
    write_parquet(records, folder / "results.parquet")
    title = f"fewstep bench: {run.config.name}"
    sections = list(contents(run))
    write_atomically(folder / "report.md", markdown(title, sections))
    write_atomically(folder / "report.html", page(title, sections, folder))
    return folder / "report.html"


def to_json(run: Run) -> dict[str, Any]:
    """The whole record: settings, versions, hashes, the references, every cell."""
    return {
        "name": run.config.name,
        "complete": not run.missing and not run.unseen,
        "config": run.config.model_dump(mode="json"),
        **run.facts,
        "references": [
            {
                "panel": panel.title,
                "seed": seed,
                "images": len(target.samples),
                **target.record,
            }
            for (panel, seed), target in run.targets.items()
        ],
        "cells": [result.record for result in run.results],
        "missing": [cell.slug for cell in run.missing],
    }


def write_parquet(records: list[dict[str, Any]], path: Path) -> None:
    """All cells as Parquet, if pyarrow is there to write it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns(records))), buffer)
    write_atomically(path, buffer.getvalue())


def contents(run: Run) -> Iterator[Section]:
    """The sections, most important first; their pictures are written on the way."""
    records = [result.record for result in run.results]
    if records:
        found = quantities(records)
        for title, part in panels_of(records).items():
            yield from panel_sections(run, title, part, found)
    yield Section("Notes", (notes(run),))
    grids = [
        Picture(f"grids/{result.cell.slug}.png", result.cell.slug, folded=True)
        for result in run.results
        if len(result.pixels)
    ]
    yield Section("Every cell", tuple(grids))


def named(run: Run, panel: Panel, seed: int) -> str:
    """What is special of the cells of a panel from a first seed."""
    parts = [panel.title] if panel.title else []
    return ", ".join(parts + ([f"seeds from {seed}"] if len(run.config.seeds) > 1 else []))


def notes(run: Run) -> list[str]:
    """What a reader must know to use the numbers."""
    config, env = run.config, run.facts["environment"]
    todo = [f"{len(run.missing)} cells"] if run.missing else []
    todo += [f"all of {name}" for name in run.unseen]
    found = [f"INCOMPLETE: {' and '.join(todo)} missing; the same command goes on."] if todo else []
    first = [f"{seed} to {seed + config.images - 1}" for seed in config.seeds]
    found += [
        f"{config.images} images per cell, seeds {' and '.join(first)}, labels {config.labels}: "
        "the same for every cell. A standard error (±) is that of a jackknife over 20 blocks of "
        "samples with the real images held fixed; differences are taken on the same samples.",
        "NFE counts evaluations of the denoiser per image; guidance doubles the calls of the "
        "network. A number in brackets is the NFE of a solver that cannot spend the column's "
        "exactly.",
        "Times are those of sampling (and decoding) on one process, while features of the batch "
        "before are extracted on the same device.",
    ]
    if config.reference is not None:
        asked = config.reference
        gaps = ", ".join(
            f"{target.record['rmse_to_check']:.2g}"
            + (f" ({named(run, *which)})" if len(run.targets) > 1 else "")
            for which, target in run.targets.items()
        )
        found.append(
            "RMSE is over all numbers of a sample (pixels in [-1, 1], latents as they are) to the "
            f"converged samples of {asked.solver} at {asked.steps} steps, for the first "
            f"{min(asked.images, config.images)} samples."
        )
        if gaps:
            found[-1] += (
                f" {asked.check} at {asked.steps} steps ends {gaps} from them: smaller errors "
                "cannot be told apart."
            )
    for name, model in run.facts["models"].items():
        for which, each in model["extractors"].items():
            halves = each["between_halves"]
            real = each["reference"]
            found.append(
                f"{name}: compared with {real.get('n') or 'an unknown number of'} images of "
                f"{real.get('images', real.get('file', '?'))} in the features of {which} "
                f"({each['fingerprint']})"
                + (f"; halves of those kept are at {halves:.2g}." if halves is not None else ".")
            )
            if real.get("lossy"):
                found.append("The real images were JPEG files, which alone moves the distances.")
            if which != INCEPTION:
                found.append(f"{which} is not the Inception of 2015: no distance in it is FID.")
    if config.images != USUAL and config.metrics:
        found.append(
            f"Frechet distances of {config.images} samples are biased upwards against those of "
            f"{USUAL:,}: compare only within this report. results.csv has them without the bias of "
            "first order."
        )
    lost = [result for result in run.results if result.record["not_finite"]]
    if lost:
        names = ", ".join(result.cell.slug for result in lost)
        found.append(f"Diverged (samples not finite): {names}.")
    found.append(
        f"Machine: {env['device']}, {env['threads']} threads, processes: {run.facts['processes']}, "
        f"Python {env['python']}, torch {env['torch']}, fewstep {env['fewstep']}."
    )
    return found
