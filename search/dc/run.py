"""Ratios for a model, found once and kept in a folder, which any solver then takes by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ... import samplers
from ...eval.models import NetworkModel
from ...eval.progress import Progress, silent
from ...eval.report import Picture, Section, Table, markdown, save_figure
from ...samplers import Ratios
from ...samplers.ratios import RATIOS
from ...samplers.registry import CHANGES
from ...schedules import Grid, grid
from ...storage import digest, environment, read_json, write_atomically, write_json
from ..lessons import end_error, lessons_of
from .config import RatioConfig
from .find import Course, greedy, joint

# Of what is kept: where teachers begin has changed.
TEACHER = "from the beginning of the schedule"
CARD, PICTURE = "README.md", "ratios.png"


@dataclass(frozen=True)
class Found:
    """The ratios of one run, and RMSE to the teacher on held-out noises, by what was done.

    `errors` has the bare "solver", "greedy", and "joint" where that was asked.
    """

    nfe: int
    guidance: float
    ratios: tuple[float, ...]
    errors: Mapping[str, float]


def find_ratios(
    config: RatioConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> list[Found]:
    """Find ratios for every NFE and guidance scale, each kept in `folder`/ratios-NFE-SCALE.json.

    ratios.json has all that `folder` holds of these settings, and the polynomial through them; its
    folder is what `compensate` takes by name. What was found in the same way is not looked for
    again. Raises ValueError for a solver that cannot be compensated.
    """
    said = config.model_dump(mode="json", exclude={"nfe", "guidance", "model", "batch_size"})
    law = grid(model.schedule, 8, "uniform", end="min")
    shared = digest(said, TEACHER, model.fingerprint, law.lam, law.label)
    wanted = [(nfe, scale) for scale in config.guidance for nfe in config.nfe]
    found = []
    for done, (nfe, scale) in enumerate(wanted):
        path = folder / f"ratios-{nfe:03d}-{scale:g}.json"
        known = read_json(path) if path.exists() else None
        if known is None or known["shared"] != shared:
            progress(done, len(wanted), f"NFE {nfe}, guidance {scale:g}")
            each = searched(config, model, nfe, scale)
            known = {
                "shared": shared,
                "nfe": nfe,
                "guidance": scale,
                "ratios": list(each.ratios),
                "errors": dict(each.errors),
            }
            write_json(path, known)
        found.append(told(known))
        gather(folder, config, model, shared)
    return found


def told(record: Mapping[str, Any]) -> Found:
    """What a file says."""
    return Found(record["nfe"], record["guidance"], tuple(record["ratios"]), dict(record["errors"]))


def searched(config: RatioConfig, model: NetworkModel, nfe: int, scale: float) -> Found:
    """The ratios for one NFE and scale."""
    nodes = grid(model.schedule, nfe, config.spacing, end=config.end)
    course = course_of(config, nodes)
    lessons, held_out = lessons_of(config, model, nodes, scale)
    ratios = greedy(course, lessons)
    errors = {
        "solver": end_error(course.table, held_out),
        "greedy": end_error(course.with_ratios(ratios), held_out),
    }
    if config.method == "joint":
        # From both ends: what is best step by step may be far from the best in the end.
        tried = [joint(course, lessons, start) for start in (ratios, (1.0,) * nfe)]
        ratios = min(tried, key=lambda each: end_error(course.with_ratios(each), lessons))
        errors["joint"] = end_error(course.with_ratios(ratios), held_out)
    return Found(nfe, scale, ratios, errors)


def course_of(config: RatioConfig, nodes: Grid) -> Course:
    """The solver on a grid, with what of it corrects told apart."""
    if taken := sorted(CHANGES.keys() & config.options.keys()):
        raise ValueError(f"options: no ratios are looked for on top of {', '.join(taken)}")
    table = samplers.build(config.solver, nodes, **config.options)
    if table.stochastic or table.grid.stage.any():
        raise ValueError(f"{config.solver} draws noise or has stages: no ratios are looked for")
    predictor = samplers.solver(config.solver).predictor(nodes, **config.options)
    return Course(table, predictor, config.order, config.overwrite, config.first)


def gather(folder: Path, config: RatioConfig, model: NetworkModel, shared: str) -> None:
    """Write the ratios, the picture and the card of all that a folder holds of these settings."""
    records = [read_json(path) for path in sorted(folder.glob("ratios-*.json"))]
    found = [told(each) for each in records if each["shared"] == shared]
    settings = config.model_dump(mode="json", exclude={"nfe", "guidance"}, exclude_defaults=True)
    ratios = Ratios.fitted(
        {(each.nfe, each.guidance): each.ratios for each in found},
        first=config.first,
        model=model.fingerprint,
        solver=config.solver,
        settings=settings,
    )
    ratios.save(folder / RATIOS)
    save_figure(picture(found), folder / PICTURE)
    head = ["NFE", "guidance", *found[0].errors, "ratios"]
    rows = [
        [
            f"{each.nfe}",
            f"{each.guidance:g}",
            *(f"{error:.4g}" for error in each.errors.values()),
            ", ".join(f"{ratio:.3f}" for ratio in each.ratios),
        ]
        for each in found
    ]
    facts = environment(model.device)
    notes = (
        f"for the network {model.fingerprint} and {model.schedule!r}",
        f"settings: `{json.dumps(settings)}`",
        f"use them by the option `compensate: {folder}` of {config.solver}, or "
        f"`samplers.build({config.solver!r}, grid, compensate={str(folder)!r})`",
        f"RMSE to {config.teacher} with {config.substeps} steps for one, of {config.held_out} "
        f"noises that were not searched with",
        f"made with fewstep {facts['fewstep']}, Python {facts['python']}, torch {facts['torch']} "
        f"on {facts['device']}",
    )
    sections = [
        Section("RMSE and ratios", (Table(head, rows), Picture(PICTURE, "Ratios along the run"))),
        Section("What it is", (notes,)),
    ]
    text = markdown(f"Ratios of {config.solver} for {model.name}", sections)
    write_atomically(folder / CARD, text)


def picture(found: list[Found]) -> Figure:
    """The ratios of each run by the share of its steps, a panel for each guidance scale."""
    scales = sorted({each.guidance for each in found})
    figure = Figure(figsize=(1.6 + 3.2 * len(scales), 3.2), layout="constrained")
    panels = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
    for axes, scale in zip(panels, scales, strict=True):
        axes.axhline(1, color="#8C8C8C", linewidth=0.8)
        for each in found:
            if each.guidance == scale:
                share = np.arange(1, each.nfe + 1) / each.nfe
                axes.plot(share, each.ratios, "o-", markersize=4, label=f"NFE {each.nfe}")
        axes.set_title(f"guidance {scale:g}", fontsize=10)
        axes.set_xlabel("share of the steps")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ratio")
    panels[-1].legend(fontsize=8, frameon=False)
    return figure
