"""The report of a benchmark: CSV, JSON, Markdown, one self-contained HTML page, PNGs."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .bench import Result, Run
from .images import save_grid
from .plots import against_nfe, curves, overview, save_figure
from .store import write_atomically, write_json

GRID_IMAGES = 100
SECTIONS = (
    ("frechet", "frechet-vs-nfe.png"),
    ("rmse", "rmse-vs-nfe.png"),
    ("seconds_per_image", None),
)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 600; }
img { max-width: 100%; image-rendering: auto; }
figure { margin: 1.5rem 0; }
figcaption, footer { color: #666; font-size: 13px; }
details img { image-rendering: pixelated; }
"""


def write_report(run: Run) -> Path:
    """Write everything that `run` shows into its folder; return the HTML page."""
    folder = run.folder
    reference = run.facts["reference"]
    own_error = [("disagreement of two references", reference["rmse_to_check"])]
    converged = [("converged samples", reference["frechet"])]
    figures = {
        "frechet-vs-nfe.png": against_nfe(run, "frechet", title(run, "frechet"), converged),
        "rmse-vs-nfe.png": against_nfe(run, "rmse", title(run, "rmse"), own_error),
        "samples.png": overview(run),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    for result in run.results:
        save_grid(result.pixels[:GRID_IMAGES], folder / "grids" / f"{result.cell.slug}.png")
    write_atomically(folder / "results.csv", to_csv(run))
    write_json(folder / "results.json", to_json(run))
    write_atomically(folder / "report.md", to_markdown(run))
    write_atomically(folder / "report.html", to_html(run))
    return folder / "report.html"


def title(run: Run, quantity: str) -> str:
    """What a quantity is called, with all that a reader needs to not mistake it."""
    return {
        "frechet": f"Frechet distance ({run.subject.extractor_name} features)",
        "rmse": "RMSE to the converged samples",
        "seconds_per_image": "milliseconds per image",
    }[quantity]


def shown(result: Result, quantity: str) -> str:
    """A value as text; milliseconds for times."""
    value = getattr(result, quantity) * (1000 if quantity == "seconds_per_image" else 1)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def matrix(run: Run, quantity: str) -> tuple[list[str], list[list[str]]]:
    """One quantity as text: column names, and a row for each curve.

    A cell that took fewer evaluations than its column allows says so: "0.12 (7)".
    """
    asked = sorted({result.cell.nfe for result in run.results})
    rows = []
    for name, results in curves(run).items():
        by_nfe = {result.cell.nfe: result for result in results}
        row = [name]
        for nfe in asked:
            result = by_nfe.get(nfe)
            text = "" if result is None else shown(result, quantity)
            took = (
                ""
                if result is None or result.cell.table.nfe == nfe
                else f" ({result.cell.table.nfe})"
            )
            row.append(text + took)
        rows.append(row)
    return ["solver", *(f"NFE {nfe}" for nfe in asked)], rows


def record(result: Result, extractor: str) -> dict[str, Any]:
    """One cell as a flat mapping, the row of the CSV."""
    cell = result.cell
    return {
        "curve": cell.curve,
        "solver": cell.table.name,
        "spacing": cell.spacing,
        "nfe": cell.table.nfe,
        "nfe_allowed": cell.nfe,
        "images": len(result.pixels),
        "rmse": result.rmse,
        f"frechet_{extractor}": result.frechet,
        "seconds_per_image": result.seconds_per_image,
    }


def to_csv(run: Run) -> str:
    """All cells, one line each."""
    rows = [record(result, run.subject.extractor_name) for result in run.results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(run: Run) -> dict[str, Any]:
    """The whole record: settings, versions, seeds, hashes, the reference, every cell."""
    return {
        "complete": not run.missing,
        "config": run.config.model_dump(mode="json"),
        "extractor": run.subject.extractor_name,
        **run.facts,
        "cells": [record(result, run.subject.extractor_name) for result in run.results],
        "missing": [cell.slug for cell in run.missing],
    }


def notes(run: Run) -> list[str]:
    """What a reader must know to use the numbers."""
    config, reference, env = run.config, run.facts["reference"], run.facts["environment"]
    solver, check, steps = config.reference.solver, config.reference.check, config.reference.steps
    guided = "off" if config.guidance == 1 else f"{config.guidance:g}: twice the network calls"
    first, last = run.facts["seeds"]
    extractor = run.subject.extractor_name
    halves = reference["frechet_between_halves_of_data"]
    lines = [
        f"Model `{config.model}`, {config.images} images per cell, seeds {first} to {last} and "
        f"balanced labels, the same for every cell; guidance {guided}.",
        "NFE counts evaluations of the denoiser per image. A number in brackets is the NFE of a "
        "solver that cannot spend the column's exactly.",
        f"RMSE is per pixel (images in [-1, 1]) to the converged samples of {solver} at {steps} "
        f"steps. On {reference['checked_images']} images {check} at {steps} steps ends "
        f"{reference['rmse_to_check']:.2g} from them: smaller errors cannot be told apart.",
        f"The Frechet distance compares {config.images} samples with "
        f"{len(run.subject.data.images)} real images in the features of {extractor}; it is not "
        f"FID. The converged samples are at {reference['frechet']:.3g}, two halves of the real "
        f"images at {halves:.2g}. Few images bias it upwards: compare only within this report.",
        f"Machine: {env['device']}, {env['threads']} threads, Python {env['python']}, "
        f"torch {env['torch']}, fewstep {env['fewstep']}.",
    ]
    if run.missing:
        todo = f"INCOMPLETE: {len(run.missing)} cells are missing; the same command goes on."
        return [todo, *lines]
    return lines


def to_markdown(run: Run) -> str:
    """The report as Markdown that links the PNGs beside it."""
    parts = [f"# fewstep bench: {run.config.name}"]
    for quantity, picture in SECTIONS:
        head, rows = matrix(run, quantity)
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        parts += [f"## {title(run, quantity)}"]
        parts += [f"![{title(run, quantity)}]({picture})"] if picture else []
        parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines)]
    parts += ["## The same samples from every solver", "![samples](samples.png)"]
    parts += ["## Notes", "\n".join(f"- {line}" for line in notes(run))]
    return "\n\n".join(parts) + "\n"


def inlined(path: Path) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def figure(path: Path, caption: str) -> str:
    """An HTML figure with the picture inside."""
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="{inlined(path)}"><figcaption>{text}</figcaption></figure>'
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the lowest value of each column is bold."""
    best = [
        min((float(row[i].split()[0]) for row in rows if row[i]), default=0.0)
        for i in range(1, len(head))
    ]
    lines = [
        "<table><thead><tr>",
        *(f"<th>{html.escape(name)}</th>" for name in head),
        "</tr></thead>",
    ]
    for row in rows:
        lines.append(f"<tr><td>{html.escape(row[0])}</td>")
        for text, lowest in zip(row[1:], best, strict=True):
            mark = ' class="best"' if text and float(text.split()[0]) == lowest else ""
            lines.append(f"<td{mark}>{text}</td>")
        lines.append("</tr>")
    return "".join([*lines, "</table>"])


def to_html(run: Run) -> str:
    """The report as one page that needs no other file."""
    name = html.escape(f"fewstep bench: {run.config.name}")
    body = [f"<h1>{name}</h1>"]
    for quantity, picture in SECTIONS:
        body.append(f"<h2>{html.escape(title(run, quantity))}</h2>")
        if picture:
            body.append(
                figure(run.folder / picture, f"{title(run, quantity)} against NFE, log-log")
            )
        body.append(html_table(*matrix(run, quantity)))
    body.append("<h2>The same samples from every solver</h2>")
    body.append(figure(run.folder / "samples.png", "The same seeds and labels in every cell"))
    body += [
        "<h2>Notes</h2><ul>",
        *(f"<li>{html.escape(line)}</li>" for line in notes(run)),
        "</ul>",
    ]
    body.append("<h2>Every cell</h2>")
    for result in run.results:
        slug = html.escape(result.cell.slug)
        body.append(f"<details><summary>{slug}</summary>")
        body.append(figure(run.folder / "grids" / f"{result.cell.slug}.png", slug) + "</details>")
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width">'
    content = "".join(body)
    return (
        f"<!doctype html><html lang=en><head>{head}{viewport}</head><body>{content}</body></html>\n"
    )
