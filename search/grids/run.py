"""Grids for a model, found once and kept in a folder, which is then a spacing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ... import samplers
from ...eval.models import Draw, NetworkModel, label_rule
from ...eval.progress import Progress, silent
from ...eval.report import Picture, Section, Table, markdown, save_figure
from ...schedules import Grid, Placed, grid
from ...schedules.base import Float
from ...schedules.grid import End
from ...schedules.placed import SPACING
from ...storage import (
    digest,
    environment,
    read_arrays,
    read_json,
    write_arrays,
    write_atomically,
    write_json,
)
from .ays import bound_costs
from .config import AnyConfig, AYSConfig, GITSConfig, NonUniformConfig
from .gits import trajectory_costs
from .nonuniform import error_bound, nonuniform
from .paths import cheapest, length, shortest

CARD, NODES = "README.md", "nodes.png"
# What it is set beside, by the same measure.
USUAL = ("uniform", "karras", "lam")
TITLES = {
    "dm": ("DM-NonUniform", "bound on the errors that are passed on"),
    "gits": ("GITS", "cost of Euler's steps along samples"),
    "ays": ("Align Your Steps", "bound on the divergence, in nats"),
}


@dataclass(frozen=True, eq=False)
class Found:
    """Nodes for one number of steps, and what is known of them, as JSON values.

    `record` has the "cost", what the method makes least, and "usual", that of common spacings,
    where it can be had; the "settings", and "model" and "key", by which it is known again.
    """

    placed: Placed
    record: Mapping[str, Any]


def find_grids(
    config: AnyConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> dict[int, Found]:
    """Find nodes for every number of steps, each written to `folder`/grid-NFE.json.

    spacing.json has all that `folder` holds of these settings, which makes the folder a spacing for
    `schedules.grid`; beside it are a card and a picture. What is there already, found in the same
    way, is not looked for again: samples are kept by batches, and the same call goes on where it
    was stopped. Raises ValueError for what the model cannot do.
    """
    law = grid(model.schedule, 8, "uniform", end="min")
    said = config.model_dump(mode="json", exclude={"nfe", "model"})
    shared = digest(said, model.fingerprint, law.lam, law.label)
    found: dict[int, Found] = {}
    measure: Measured | None = None
    for done, nfe in enumerate(config.nfe):
        path, key = folder / f"grid-{nfe:03d}.json", digest(shared, nfe)
        known = stored(path)
        if known is None or known.record["key"] != key:
            if isinstance(config, NonUniformConfig):
                nodes, said = minimised(config, model, nfe)
                progress(done, len(config.nfe), f"{nfe} steps")
            else:
                measure = measure or measured(config, model, folder / "costs", shared, progress)
                nodes, said = chosen(measure, nfe)
            record = {
                "key": key,
                "shared": shared,
                "model": model.fingerprint,
                **said,
                "settings": config.model_dump(mode="json", exclude={"nfe"}, exclude_defaults=True),
            }
            write_json(path, {**nodes.to_dict(), "found": record})
            known = Found(nodes, record)
        found[nfe] = known
        gather(folder, config, model, shared)
    return found


def stored(path: Path) -> Found | None:
    """What was found before; None where there is no such file."""
    return Found(Placed.load(path), read_json(path)["found"]) if path.exists() else None


def minimised(
    config: NonUniformConfig, model: NetworkModel, nfe: int
) -> tuple[Placed, dict[str, Any]]:
    """The nodes of DM-NonUniform, and their bound beside those of common spacings."""

    def bound(spacing: str | Placed) -> float:
        nodes = grid(model.schedule, nfe, spacing, end="min")
        return error_bound(samplers.build(config.solver, nodes), config.power)

    nodes = nonuniform(model.schedule, nfe, solver=config.solver, power=config.power)
    return nodes, {"cost": bound(nodes), "usual": {name: bound(name) for name in USUAL}}


@dataclass(frozen=True, eq=False)
class Measured:
    """Candidates, what a step between any two costs, and how much more each later one counts."""

    grid: Grid
    cost: Float
    growth: float


def chosen(measure: Measured, nfe: int) -> tuple[Placed, dict[str, Any]]:
    """The cheapest nodes among the candidates, and their cost beside those of common spacings."""
    nodes = cheapest(measure.grid, measure.cost, [nfe], measure.growth)
    path = shortest(measure.cost, nfe, measure.growth)
    usual = {}
    for name in USUAL:
        near = nearest(measure.grid, nfe, name)
        if near is not None:
            usual[name] = length(measure.cost, near, measure.growth)
    return nodes, {"cost": length(measure.cost, path, measure.growth), "usual": usual}


def nearest(candidates: Grid, nfe: int, spacing: str) -> tuple[int, ...] | None:
    """The candidates nearest to the nodes of a spacing; None if two of them fall together."""
    law, top = candidates.require_schedule(), candidates.nfe
    end: End = "zero" if np.isposinf(candidates.lam[-1]) else "min"
    try:
        nodes = grid(law, nfe, spacing, end=end)
    except ValueError:
        # Some cannot begin at pure noise.
        return None
    known = candidates.lam[1:-1]
    inside = [1 + int(np.abs(known - lam).argmin()) for lam in nodes.lam[1:-1]]
    path = (0, *inside, top)
    return path if len({*path}) == nfe + 1 else None


def measured(
    config: GITSConfig | AYSConfig,
    model: NetworkModel,
    folder: Path,
    shared: str,
    progress: Progress,
) -> Measured:
    """The costs, a mean over all samples; each batch is kept in `folder`."""
    law, end = model.schedule, config.end if isinstance(config, GITSConfig) else "min"
    steps = config.candidates
    if steps < max(config.nfe):
        raise ValueError(
            f"{steps} candidates are too few for {max(config.nfe)} steps; set candidates higher"
        )
    nodes = grid(law, steps, config.spacing, end=end)
    total = np.zeros((steps + 1, steps + 1))
    for first in range(0, config.samples, config.batch_size):
        rows = range(first, min(first + config.batch_size, config.samples))
        path, key = folder / f"{first:06d}.npz", digest(shared, first, len(rows), str(model.device))
        kept = read_arrays(path, key)
        cost = batch_costs(config, model, nodes, rows) if kept is None else kept["cost"]
        if kept is None:
            write_arrays(path, key, {"cost": cost})
        total += cost * len(rows) / config.samples
        progress(rows.stop, config.samples, "samples of the model")
    return Measured(nodes, total, config.growth if isinstance(config, GITSConfig) else 1.0)


def batch_costs(
    config: GITSConfig | AYSConfig, model: NetworkModel, nodes: Grid, rows: range
) -> Float:
    """The costs by some of the samples."""
    seeds = range(config.first_seed + rows.start, config.first_seed + rows.stop)
    labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
    denoiser = model.denoiser_of(Draw(seeds, labels, config.guidance))
    teacher = samplers.build(config.teacher, nodes)
    x = samplers.noise(nodes, model.shape, seeds, device=model.device)
    if isinstance(config, GITSConfig):
        return trajectory_costs(denoiser, teacher, x, config.measure)
    with torch.no_grad():
        data = samplers.sample(denoiser, teacher, x, seeds=seeds)
    return bound_costs(denoiser, nodes, data, seeds)


def gather(folder: Path, config: AnyConfig, model: NetworkModel, shared: str) -> None:
    """Write the spacing, the picture and the card of all that a folder holds of these settings."""
    every = [stored(path) for path in sorted(folder.glob("grid-*.json"))]
    found = [each for each in every if each is not None and each.record["shared"] == shared]
    spacing = Placed(tuple(each.placed.lams[0] for each in found))
    spacing.save(folder / SPACING)
    save_figure(picture(spacing, model), folder / NODES)
    name, what = TITLES[config.method]
    head = ["steps", what, *USUAL, "sigma / alpha"]
    rows = [
        [
            f"{each.placed.steps[0]}",
            f"{each.record['cost']:.4g}",
            *(shown(each.record["usual"].get(name)) for name in USUAL),
            ", ".join(f"{math.exp(-lam):.4g}" for lam in each.placed.lams[0]),
        ]
        for each in found
    ]
    settings = json.dumps(found[0].record["settings"])
    facts = environment(model.device)
    notes = (
        f"for the network {model.fingerprint} and {model.schedule!r}",
        f"settings: `{settings}`",
        f"use it by `--spacing {folder}`, or `fewstep.grid(schedule, nfe, {str(folder)!r})`",
        f"made with fewstep {facts['fewstep']}, Python {facts['python']}, torch {facts['torch']} "
        f"on {facts['device']}",
    )
    sections = [
        Section("Nodes", (Table(head, rows), Picture(NODES, "Where the nodes are"))),
        Section("What it is", (notes,)),
    ]
    text = markdown(f"Nodes by {name} for {model.name}", sections)
    write_atomically(folder / CARD, text)


def shown(cost: float | None) -> str:
    """A cost of a common spacing; a dash where it has none."""
    return "-" if cost is None else f"{cost:.4g}"


def picture(spacing: Placed, model: NetworkModel) -> Figure:
    """The nodes of each number of steps along sigma / alpha, and those of common spacings."""
    figure = Figure(figsize=(7.2, 1.2 + 0.9 * len(spacing.steps)), layout="constrained")
    axes = figure.add_subplot()
    law, labels = model.schedule, []
    for k, steps in enumerate(spacing.steps):
        rows: list[tuple[str, Placed | str]] = [("cheapest", spacing), *((n, n) for n in USUAL[:2])]
        for row, (name, rule) in enumerate(rows):
            nodes = grid(law, steps, rule)
            colour, marker = ("#8C8C8C", "|") if row else ("#0072B2", "o")
            nsr = nodes.nsr[np.isfinite(nodes.nsr) & (nodes.nsr > 0)]
            height = -(k + 0.25 * row)
            axes.plot(nsr, [height] * len(nsr), marker, color=colour, markersize=7)
            labels.append((height, f"{steps}, {name}"))
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("sigma / alpha where the network is asked (pure noise not shown)")
    axes.set_yticks([height for height, _ in labels], [text for _, text in labels], fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
