"""Tables for a model, learned from a better sampler: one for each NFE, in one file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import samplers
from ..eval.extractors import extractor, unrounded
from ..eval.models import NetworkModel
from ..eval.progress import Progress, silent
from ..samplers import Tableau
from ..samplers.blend import Blend
from ..samplers.family import load_blends
from ..samplers.fit import Trajectories, fit_tables
from ..schedules import grid
from ..storage import digest
from ..training import accelerator_for, train
from .config import TableConfig
from .descent import table_task
from .gauss_newton import refine_tables
from .learned import LearnedTable
from .lessons import first_batches, pairs, taught
from .nodes import place
from .objective import Objective, distance
from .result import save_scheduler, write_card
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

    `tables` are those of all scales, or one. `peer` names the solver and its spacing, and `seconds`
    are those of processors that it took, besides the teacher.
    """

    tables: Blend
    error: float
    peer: str
    peer_error: float
    seconds: float

    @property
    def table(self) -> Tableau:
        """The table of the lowest scale, or of the only one."""
        return self.tables.tables[0]


def learn_tables(
    config: TableConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> dict[int, Learned]:
    """Learn a table for every NFE of `config`, and write them to `folder`/tables.json.

    Beside it are a card and, if the model came with one and they are for one guidance scale, a
    scheduler that diffusers loads.

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
            samplers.save_family({nfe: marked(known, nfe, key, model)}, part)
        tables[nfe] = known
        samplers.save_family({n: each.tables for n, each in tables.items()}, folder / FAMILY)
        if len(config.guidance) == 1:
            save_scheduler(model, {n: each.table for n, each in tables.items()}, folder)
        card_of(config, model, tables, folder)
    return tables


def card_of(
    config: TableConfig, model: NetworkModel, tables: Mapping[int, Learned], folder: Path
) -> None:
    """Write the card of these tables."""
    rows = [
        [
            *(f"{nfe}", f"{each.peer_error:.4f} ({each.peer})", f"{each.error:.4f}"),
            *(f"{each.error / each.peer_error:.2f}", f"{each.seconds:.0f} s"),
            ", ".join(f"{label:.4g}" for label in each.table.grid.label[:-1]),
        ]
        for nfe, each in tables.items()
    ]
    scales = ", ".join(f"{scale:g}" for scale in config.guidance)
    write_card(
        folder,
        f"Sampler tables for {model.name}",
        f"Learned from {config.solver} at {config.teacher_steps} steps, on the network "
        f"{model.fingerprint}, for guidance {scales}. Errors are root mean squares to the "
        f"teacher's samples on {config.held_out} noises that were not learned from. Use it by "
        f'`fewstep.use(pipe, "{FAMILY}")`, with `guidance=` for several scales. Without fewstep '
        "only the times are of use (`timesteps=` of a scheduler that takes them).",
        ["NFE", "best solver's error", "error", "ratio", "processor time", "times"],
        rows,
        config.model_dump(mode="json", exclude_defaults=True),
        model.device,
    )


def marked(known: Learned, nfe: int, key: str, model: NetworkModel) -> Blend:
    """The tables with a name, and with what is known of them."""
    marks = {
        "key": key,
        "model": model.fingerprint,
        "error": known.error,
        "peer": known.peer,
        "peer_error": known.peer_error,
        "seconds": known.seconds,
    }
    tables = (each.renamed(f"learned-{nfe}", learned=marks) for each in known.tables.tables)
    return replace(known.tables, tables=tuple(tables))


def stored(path: Path, key: str, fingerprint: str) -> Learned | None:
    """Tables learned before, in the same way and of the same weights."""
    if not path.exists():
        return None
    (blend,) = load_blends(path).values()
    marks: Mapping[str, float | str] = blend.tables[0].meta.get("learned", {})
    if (marks.get("key"), marks.get("model")) != (key, fingerprint):
        return None
    error, peer, seconds = (float(marks[key]) for key in ("error", "peer_error", "seconds"))
    return Learned(blend, error, str(marks["peer"]), peer, seconds)


def learn(
    config: TableConfig,
    model: NetworkModel,
    teacher: Teacher,
    nfe: int,
    folder: Path,
    progress: Progress,
) -> Learned:
    """The table of one NFE."""
    begun = time.process_time()
    count = first_batches(teacher.batches, config.samples)
    objective = objective_of(config, teacher)
    lessons, held_out = teacher.batches[:count], teacher.batches[count:]
    if config.fitted:
        tables = closest(config, teacher.part(0, count), nfe, objective, progress)
    else:
        plain = samplers.build(config.base, grid(model.schedule, nfe, config.spacing))
        tables = [plain.in_basis("x0")] * len(config.knots)
    if config.steps:
        tables = refine_tables(
            lessons,
            tables,
            what=config.what,
            steps=config.steps,
            free=config.free,
            objective=objective,
            held_out=held_out,
            at_once=first_batches(lessons, min(config.sketch, config.samples)),
            progress=progress,
        )
    if config.training is not None:
        (table,) = tables
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
        candidates = (tables, [module.table()])
        tables = min(candidates, key=lambda each: objective.loss(held_out, each))
    found = peers(teacher, held_out, nfe)
    peer = min(found, key=lambda name: found[name])
    seconds = time.process_time() - begun
    blend = Blend(config.knots, tuple(tables))
    return Learned(blend, distance(held_out, tables), peer, found[peer], seconds)


def closest(
    config: TableConfig, teacher: Teacher, nfe: int, objective: Objective, progress: Progress
) -> list[Tableau]:
    """The closed form on the nodes that suit it best: a table for each of the knots."""
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
    return fit_tables(met, nodes, base=config.base, free=config.free).tables


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
