"""Tables for a model, learned from a better sampler: one for each NFE, in one file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from .. import samplers
from ..eval.extractors import extractor, unrounded
from ..eval.models import Draw, NetworkModel, label_rule
from ..eval.progress import Progress, silent
from ..eval.settings import SEEDS, STRICT, ExtractorConfig, ModelConfig
from ..samplers import Tableau
from ..samplers.fit import Free, Trajectories, fit_rows, teach
from ..schedules import grid
from ..storage import digest
from .gauss_newton import What, refine
from .nodes import place
from .objective import Objective, distance
from .teacher import Teacher

FAMILY = "tables.json"
# Solvers that a learned table is set beside.
PEERS = ("unipc-3", "ipndm-2")
PLACED: tuple[tuple[str, Literal["zero", "min"]], ...] = (
    *(("uniform", "zero"), ("karras", "zero"), ("leading", "min")),
)


class TableConfig(BaseModel):
    """What tables are learned from, and how.

    A teacher, `solver` at `teacher_steps`, is run once on `samples` + `held_out` noises from
    `first_seed` on. For each NFE nodes are chosen by closed-form fits to the first `search` of them
    (`place`, at most `moves` single moves), rows are fitted to all, and the numbers `what` are
    refined by Gauss-Newton `steps` (0: the closed form alone), those that do best on the held-out
    noises being kept. `free` as in `samplers.fit`; `eps`, `features` (of an extractor) and their
    weight as in `Objective`.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    nfe: tuple[PositiveInt, ...] = (5,)
    solver: str = "unipc-3"
    teacher_steps: PositiveInt = 64
    spacing: str = "uniform"
    samples: PositiveInt = 300
    held_out: PositiveInt = 100
    search: PositiveInt = 100
    first_seed: NonNegativeInt = 2**31
    labels: str | int = "balanced"
    guidance: float = 1.0
    moves: NonNegativeInt = 25
    steps: NonNegativeInt = 6
    what: tuple[What, ...] = ("weights", "times")
    free: Free = "inner"
    eps: PositiveFloat | None = 0.03
    features: ExtractorConfig | None = None
    feature_weight: PositiveFloat = 0.2
    batch_size: PositiveInt = 100

    @field_validator("nfe")
    @classmethod
    def ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """Sort and drop repeats."""
        if not value:
            raise ValueError("give at least one number of evaluations")
        return tuple(sorted(set(value)))

    @field_validator("first_seed")
    @classmethod
    def room(cls, value: int) -> int:
        """Refuse seeds that stand for the same noise."""
        if value >= SEEDS - 2**20:
            raise ValueError(f"first_seed must leave room for the samples below {SEEDS}")
        return value


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

    One that `folder` holds already, learned in the same way, is not learned again: the same call
    goes on where it was stopped. Raises ValueError for what the model cannot do.
    """
    nodes = grid(model.schedule, config.teacher_steps, config.spacing)
    solver = samplers.build(config.solver, nodes)
    tables: dict[int, Learned] = {}
    teacher: Teacher | None = None
    for nfe in config.nfe:
        part = folder / f"table-{nfe:03d}.json"
        key = digest(config.model_dump(mode="json", exclude={"nfe", "batch_size"}), nfe)
        known = stored(part, key, model.fingerprint)
        if known is None:
            if teacher is None:
                teacher = taught(config, model, solver, progress)
            known = learn(config, teacher, nfe, progress)
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


def taught(
    config: TableConfig, model: NetworkModel, solver: Tableau, progress: Progress
) -> Teacher:
    """The teacher's trajectories: those for the search of nodes, the rest to learn from, others."""
    batches: list[Trajectories] = []
    total = config.samples + config.held_out
    search = min(config.search, config.samples)
    for first, last in ((0, search), (search, config.samples), (config.samples, total)):
        for start in range(first, last, config.batch_size):
            seeds = range(start, min(start + config.batch_size, last))
            shifted = range(config.first_seed + seeds.start, config.first_seed + seeds.stop)
            batches.append(batch_of(config, model, solver, shifted))
            progress(seeds.stop, total, "the teacher's samples")
    return Teacher(solver.grid, tuple(batches))


@torch.no_grad()
def batch_of(
    config: TableConfig, model: NetworkModel, solver: Tableau, seeds: range
) -> Trajectories:
    """One batch of the teacher's trajectories."""
    labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
    denoiser = model.denoiser_of(Draw(seeds, labels, config.guidance))
    x = samplers.noise(solver.grid, model.shape, seeds, device=model.device)
    return teach(solver, denoiser, x / float(solver.grid.sigma[0]))


def learn(config: TableConfig, teacher: Teacher, nfe: int, progress: Progress) -> Learned:
    """The table of one NFE."""
    search, count = (first_batches(teacher, n) for n in (config.search, config.samples))
    objective = objective_of(config, teacher)
    chosen = place(
        teacher.part(0, search),
        nfe,
        moves=config.moves,
        free=config.free,
        objective=objective,
        progress=progress,
    )
    nodes, met = teacher.trajectories(chosen.places)
    held_out = met[count:]
    table = fit_rows(met[:count], nodes, free=config.free)
    if config.steps:
        table = refine(
            met[:count],
            table,
            what=config.what,
            steps=config.steps,
            free=config.free,
            objective=objective,
            held_out=held_out,
            progress=progress,
        )
    found = peers(teacher, held_out, nfe)
    peer = min(found, key=lambda name: found[name])
    return Learned(table, distance(held_out, table), peer, found[peer])


def objective_of(config: TableConfig, teacher: Teacher) -> Objective:
    """The objective, with features in units of their deviation over the teacher's samples."""
    if config.features is None:
        return Objective(config.eps)
    ends = torch.cat([batch.states[-1] for batch in teacher.batches])
    built = extractor(config.features.id, ends.device, **config.features.options)
    scale = unrounded(built, ends).std(0).mean()

    def features(x: Tensor) -> Tensor:
        return unrounded(built, x) / scale

    return Objective(config.eps, features, config.feature_weight)


def first_batches(teacher: Teacher, samples: int) -> int:
    """How many of the first batches have that many samples."""
    ends = itertools.accumulate(len(batch.z) for batch in teacher.batches)
    return 1 + next(i for i, end in enumerate(ends) if end >= samples)


def peers(teacher: Teacher, held_out: list[Trajectories], nfe: int) -> dict[str, float]:
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
