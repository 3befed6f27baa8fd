"""Tables for a model, learned from a better sampler: one for each NFE, in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import samplers
from ..eval.extractors import extractor, unrounded
from ..eval.models import NetworkModel
from ..eval.progress import Progress, silent
from ..samplers import Tableau
from ..samplers.fit import Trajectories, fit_rows
from ..schedules import grid
from ..storage import digest
from ..training import accelerator_for, train
from .config import TableConfig
from .descent import table_task
from .gauss_newton import refine
from .learned import LearnedTable
from .lessons import first_batches, pairs, taught
from .nodes import place
from .objective import Objective, distance
from .teacher import Teacher

FAMILY = "tables.json"
# Solvers that a learned table is set beside.
PEERS = ("unipc-3", "ipndm-2")
PLACED: tuple[tuple[str, Literal["zero", "min"]], ...] = (
    *(("uniform", "zero"), ("karras", "zero"), ("leading", "min")),
)
# What decides no number of a table.
ASIDE = {"nfe": True, "batch_size": True, "gradient_checkpointing": True}


@dataclass(frozen=True, eq=False)
class Learned:
    """A table, and how far its held-out samples and those of the best peer end from the teacher's.

    `peer` names the solver and its spacing.
    """

    table: Tableau
    error: float
    peer: str
    peer_error: float


def learn_tables(
    config: TableConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> dict[int, Learned]:
    """Learn a table for every NFE of `config`, and write them to `folder`/tables.json.

    What `folder` holds already, learned in the same way, is not learned again: the same call goes
    on where it was stopped. Raises ValueError for what the model cannot do.
    """
    tables: dict[int, Learned] = {}
    teacher: Teacher | None = None
    for nfe in config.nfe:
        part = folder / f"table-{nfe:03d}.json"
        key = digest(config.model_dump(mode="json", exclude=ASIDE), nfe)
        known = stored(part, key, model.fingerprint)
        if known is None:
            if teacher is None:
                teacher = taught(config, model, folder / "teacher", progress)
            known = learn(config, model, teacher, nfe, folder, progress)
            marks = {"learned": {"key": key, "model": model.fingerprint, **described(known)}}
            known.table.renamed(f"learned-{nfe}", **marks).save(part)
        tables[nfe] = known
        samplers.save_family({n: each.table for n, each in tables.items()}, folder / FAMILY)
    return tables


def described(known: Learned) -> dict[str, float | str]:
    """What is known of a table, as JSON values."""
    return {"error": known.error, "peer": known.peer, "peer_error": known.peer_error}


def stored(path: Path, key: str, fingerprint: str) -> Learned | None:
    """A table learned before, in the same way and of the same weights."""
    if not path.exists():
        return None
    table = Tableau.load(path)
    marks: Mapping[str, float | str] = table.meta.get("learned", {})
    if (marks.get("key"), marks.get("model")) != (key, fingerprint):
        return None
    return Learned(table, float(marks["error"]), str(marks["peer"]), float(marks["peer_error"]))


def learn(
    config: TableConfig,
    model: NetworkModel,
    teacher: Teacher,
    nfe: int,
    folder: Path,
    progress: Progress,
) -> Learned:
    """The table of one NFE."""
    count = first_batches(teacher.batches, config.samples)
    objective = objective_of(config, teacher)
    lessons, held_out = teacher.batches[:count], teacher.batches[count:]
    if config.fitted:
        table = closest(config, teacher.part(0, count), nfe, objective, progress)
    else:
        table = samplers.build(config.base, grid(model.schedule, nfe, config.spacing))
    if config.steps:
        table = refine(
            lessons,
            table,
            what=config.what,
            steps=config.steps,
            free=config.free,
            objective=objective,
            held_out=held_out,
            at_once=first_batches(lessons, min(config.sketch, config.samples)),
            progress=progress,
        )
    if config.training is not None:
        module = LearnedTable(table, config.what, base=config.base, free=config.free)
        task = table_task(
            module,
            pairs(config, model, lessons),
            held_out,
            objective,
            batch_size=config.train_batch_size,
            seed=config.training.seed,
            ball=config.ball,
            gradient_checkpointing=config.gradient_checkpointing,
            facts={"model": model.fingerprint, "begun": table.to_dict()},
        )
        out = folder / f"training-{nfe:03d}"
        train(task, config.training, out, accelerator_for(config.training, out), progress)
        candidates = (table, module.table())
        table = min(candidates, key=lambda each: objective.loss(held_out, each))
    found = peers(teacher, held_out, nfe)
    peer = min(found, key=lambda name: found[name])
    return Learned(table, distance(held_out, table), peer, found[peer])


def closest(
    config: TableConfig, teacher: Teacher, nfe: int, objective: Objective, progress: Progress
) -> Tableau:
    """The closed form on the nodes that suit it best."""
    chosen = place(
        teacher.part(0, first_batches(teacher.batches, min(config.search, config.samples))),
        nfe,
        moves=config.moves,
        base=config.base,
        free=config.free,
        objective=objective,
        progress=progress,
    )
    nodes, met = teacher.trajectories(chosen.places)
    return fit_rows(met, nodes, base=config.base, free=config.free)


def objective_of(config: TableConfig, teacher: Teacher) -> Objective:
    """The objective, with features in units of their deviation over the teacher's samples."""
    if config.features is None:
        return Objective(config.loss, config.eps)
    ends = torch.cat([batch.states[-1] for batch in teacher.batches])
    built = extractor(config.features.id, ends.device, **config.features.options)
    with torch.no_grad():
        scale = unrounded(built, ends).std(0).mean()

    def features(x: Tensor) -> Tensor:
        return unrounded(built, x) / scale

    return Objective(config.loss, config.eps, features, config.feature_weight)


def peers(teacher: Teacher, held_out: Sequence[Trajectories], nfe: int) -> dict[str, float]:
    """How far known solvers end from the teacher, by solver and spacing."""
    law = teacher.grid.require_schedule()
    found = {}
    for solver in PEERS:
        for spacing, end in PLACED:
            # Some are of discrete models only.
            with suppress(ValueError):
                table = samplers.build(solver, grid(law, nfe, spacing, end=end))
                found[f"{solver}, {spacing}"] = distance(held_out, table)
    return {name: error for name, error in found.items() if math.isfinite(error)}
