"""The report of a benchmark: what is in it, and the files that it goes to."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ...storage import write_atomically, write_json
from ..bench import Panel, PublishedConfig, Run
from ..images import quantise, save_grid, thumbnails
from ..score import INCEPTION
from .page import Block, Picture, Section, markdown, page
from .plots import BAND, against_nfe, against_seconds, overview, save_figure
from .points import RMSE, SECONDS, Quantity, Record, main_quantity, panels_of, points, quantities
from .tables import agreement, best, by_nfe, columns, to_csv

PLOTTED = ("frechet/", "kernel/", "spatial/", "cmmd/", "rmse")
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
            yield from of_panel(run, title, part, found)
    yield Section("Notes", (notes(run),))
    grids = [
        Picture(f"grids/{result.cell.slug}.png", result.cell.slug, folded=True)
        for result in run.results
        if len(result.pixels)
    ]
    yield Section("Every cell", tuple(grids))


def of_panel(
    run: Run, title: str, records: list[Record], found: list[Quantity]
) -> Iterator[Section]:
    """The sections of the cells of one model at one guidance scale."""
    slug = "".join(c if c.isalnum() else "-" for c in title)
    place = f" ({title})" if title else ""
    heading = f"{run.config.name}{place}, {records[0]['images']} images"
    names, curves = ({record[key] for record in records} for key in ("slug", "curve"))
    beside = [each for each in run.config.published if is_about(each, records[0])]
    main = main_quantity(found)
    if len({record["curve"] for record in records}) > 1:
        yield Section(f"The best at each NFE{place}", (best(records, main),))
    for quantity in found:
        blocks: list[Block] = []
        if quantity.key.startswith(PLOTTED) and points(records, quantity):
            file = f"{quantity.key.split('/')[0]}-vs-nfe{slug and '-' + slug}.png"
            if sum(q.key.split("/")[0] == quantity.key.split("/")[0] for q in found) > 1:
                file = f"{quantity.key.replace('/', '-')}-vs-nfe{slug and '-' + slug}.png"
            theirs = [each.values for each in beside if matches(each, quantity)]
            some = points(records, quantity)
            floors = list(lines(run, title, quantity))
            figure = against_nfe(some, quantity.title, floors, theirs, heading)
            save_figure(figure, run.folder / file)
            bands = f"bands are {BAND} standard errors" if quantity.key != SECONDS.key else ""
            blocks.append(Picture(file, f"{quantity.title} against NFE{place}; {bands}"))
        blocks.append(by_nfe(records, quantity))
        for each in (each for each in beside if matches(each, quantity)):
            table = agreement(records, each, quantity.key)
            if table.rows:
                blocks += [[f"Published: {each.source}"], table]
            absent = [curve for curve in each.values if curve not in curves]
            if absent:
                blocks.append([f"{each.source} has {', '.join(absent)}, too, which did not run."])
        yield Section(f"{quantity.title}{place}", tuple(blocks))
    some = points(records, main)
    if some:
        file = f"pareto{slug and '-' + slug}.png"
        figure = against_seconds(some, main.title, main.lower_is_better, heading)
        save_figure(figure, run.folder / file)
        caption = (
            f"{main.title} against the time per image{place}; numbers are NFE, bars {BAND} "
            "standard errors"
        )
        yield Section(f"Quality against time{place}", (Picture(file, caption),))
    file = f"samples{slug and '-' + slug}.png"
    save_figure(overview(sheets(run, names, title)), run.folder / file)
    caption = "The same seeds and labels in every cell"
    yield Section(f"The same samples from every solver{place}", (Picture(file, caption),))


def is_about(published: PublishedConfig, record: Record) -> bool:
    """Whether published values are of the model and the guidance of a cell."""
    pairs = ((published.model, record["model"]), (published.guidance, record["guidance"]))
    return all(theirs in (None, ours) for theirs, ours in pairs)


def matches(published: PublishedConfig, quantity: Quantity) -> bool:
    """Whether published values are of this quantity; those of FID are of the Inception only."""
    name, _, extractor = quantity.key.partition("/")
    return published.quantity == quantity.key or (
        published.quantity == name and extractor == INCEPTION
    )


def lines(run: Run, title: str, quantity: Quantity) -> Iterator[tuple[str, float]]:
    """The level that no solver can be told below: of the converged samples, or of their check."""
    for (panel, _), target in run.targets.items():
        if panel.title != title:
            continue
        if quantity == RMSE:
            yield "disagreement of two references", target.record["rmse_to_check"]
        elif len(target.samples) == run.config.images:
            value = target.record["values"].get(quantity.key, {}).get("value")
            if value is not None:
                yield "converged samples", value
        return


def sheets(run: Run, names: set[str], title: str) -> dict[str, dict[str, Tensor]]:
    """The first images of a panel's cells by curve and NFE, and the converged ones last."""
    chosen = [r for r in run.results if r.cell.slug in names and r.cell.seed == run.config.seeds[0]]
    found: dict[str, dict[str, Tensor]] = {}
    for result in sorted(chosen, key=lambda r: r.cell.nfe):
        row = found.setdefault(result.cell.curve, {})
        row[f"NFE {result.cell.nfe}"] = thumbnails(result.pixels)
    for (panel, _), target in run.targets.items():
        if panel.title == title:
            for row in found.values():
                row["reference"] = thumbnails(quantise(target.samples[: run.config.preview]))
    return found


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
