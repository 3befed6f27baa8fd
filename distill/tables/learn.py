"""Tables for a model, learned from a better sampler: one for each NFE, in one file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ... import samplers
from ...eval.evaluate import outputs_of
from ...eval.extractors import extractor, unrounded
from ...eval.models import NetworkModel
from ...eval.progress import Progress, silent
from ...eval.results import save_scheduler, write_card
from ...eval.sources import open_images
from ...samplers import Tableau
from ...samplers.blend import Blend
from ...samplers.family import FAMILY, load_blends
from ...samplers.files import number
from ...samplers.fit import Trajectories, fit_rows, plain
from ...schedules import grid
from ...storage import digest, read_json, write_json
from ...training import accelerator_for, train
from ...training.settings import FREE
from .config import TableConfig
from .descent import table_task
from .frechet import FrechetCoordinates
from .gauss_newton import Refinement, refine
from .learned import LearnedTable
from .lessons import first_batches, pairs, taught
from .nodes import place
from .objective import Objective, distance
from .teacher import Teacher

# Solvers that a learned table is set beside.
PEERS = ("unipc-3", "ipndm-2")
PLACED: tuple[tuple[str, Literal["zero", "min"]], ...] = (
    *(("uniform", "zero"), ("karras", "zero"), ("leading", "min")),
)
# What decides no number of a table; its model is known by its weights.
ASIDE: dict[str, Any] = {"nfe": True, "gradient_checkpointing": True, "model": True}


@dataclass(frozen=True, eq=False)
class Learned:
    """A table, and how far its held-out samples and those of the best peer end from the teacher's.

    `tables` are those of all scales, or one. `record` is what is known of it, as JSON values:
    "error", "peer" (a solver and its spacing), "peer_error", the "seconds" of processors that it
    took besides the teacher, the "settings", and "model" and "key", by which it is known again.
    """

    tables: Blend
    record: Mapping[str, Any]

    @property
    def table(self) -> Tableau:
        """The table of the lowest scale, or of the only one."""
        return self.tables.tables[0]

    @property
    def error(self) -> float:
        """The root mean square to the teacher's held-out samples."""
        return float(self.record["error"])

    @property
    def peer_error(self) -> float:
        """That of the best peer."""
        return float(self.record["peer_error"])


def learn_tables(
    config: TableConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> dict[int, Learned]:
    """Learn a table for every NFE of `config`, each written to `folder`/table-NFE.json.

    tables.json is the family of all that `folder` holds for this model and these scales, also by
    other settings. Beside it are a card and, if they are for one scale and the model came with one,
    a scheduler that diffusers loads. What is there already, learned in the same way, is not learned
    again: the same call goes on where it was stopped. Raises ValueError for what the model cannot
    do.
    """
    found: dict[int, Learned] = {}
    teacher: Teacher | None = None
    shared = key_of(config, model)
    for nfe in config.nfe:
        path, key = folder / f"table-{nfe:03d}.json", digest(shared, nfe)
        known = stored(path)
        if known is None or known.record["key"] != key:
            if teacher is None:
                teacher = taught(config, model, folder / "teacher", progress)
            out = folder / f"training-{nfe:03d}-{key}"
            tables, record = learn(config, model, teacher, nfe, out, progress)
            known = named(tables, nfe, {**record, "key": key, "model": model.fingerprint})
            samplers.save_family({nfe: known.tables}, path)
        found[nfe] = known
        gather(folder, model, config.knots)
    return found


def key_of(config: TableConfig, model: NetworkModel) -> str:
    """What all numbers of a table depend on besides its NFE: settings, weights, law, extractor."""
    aside = {**ASIDE, "training": set(FREE)} if config.training is not None else ASIDE
    said = config.model_dump(mode="json", exclude=aside)
    features = real = None
    if config.features is not None:
        features = extractor(config.features.id, **config.features.options).fingerprint
    if config.likeness and config.model.data is not None:
        real = open_images(config.model.data).identity
    law = grid(model.schedule, config.teacher_steps, config.spacing)
    return digest(said, model.fingerprint, law.lam, law.label, features, real)


def gather(folder: Path, model: NetworkModel, scales: tuple[float, ...]) -> None:
    """Write the family, the scheduler and the card of all tables in a folder that go together."""
    every = [stored(path) for path in sorted(folder.glob("table-*.json"))]
    found = {
        each.tables.nfe: each
        for each in every
        if each is not None
        and each.record["model"] == model.fingerprint
        and each.tables.scales == scales
    }
    samplers.save_family({nfe: each.tables for nfe, each in found.items()}, folder / FAMILY)
    if len(scales) == 1:
        tables = {nfe: each.table for nfe, each in found.items()}
        save_scheduler(model.scheduler_config, tables, folder)
    rows = [
        [
            *(f"{nfe}", f"{each.peer_error:.4f} ({each.record['peer']})", f"{each.error:.4f}"),
            *(f"{each.error / each.peer_error:.2f}", f"{each.record['seconds']:.0f} s"),
            str(each.record.get("seeds", "")),
            ", ".join(f"{label:.4g}" for label in each.table.grid.label[:-1]),
        ]
        for nfe, each in found.items()
    ]
    reach = " to ".join(f"{scale:g}" for scale in sorted({scales[0], scales[-1]}))
    write_card(
        folder,
        f"Sampler tables for {model.name}",
        f"Learned from samples of a solver with many steps, on the network {model.fingerprint}, "
        f"for guidance {reach}. Errors are root mean squares to such samples of noises that were "
        "not learned from, but decided when to stop. Use it by "
        f'`fewstep.use(pipe, "{FAMILY}")`, with `guidance=` if it is '
        "for several scales. Without fewstep only the times are of use (`timesteps=` of a "
        "scheduler that takes them).",
        ["NFE", "best solver's error", "error", "ratio", "processor time", "seeds", "times"],
        rows,
        {str(nfe): each.record["settings"] for nfe, each in found.items()},
        model.device,
    )


def named(tables: Blend, nfe: int, record: Mapping[str, Any]) -> Learned:
    """The tables with a name, and what is known of them kept in the first."""
    first, *rest = (each.renamed(f"learned-{nfe}") for each in tables.tables)
    first = first.renamed(first.name, learned=dict(record))
    return Learned(replace(tables, tables=(first, *rest)), record)


def stored(path: Path) -> Learned | None:
    """Tables learned before; None where there is no such file."""
    if not path.exists():
        return None
    (blend,) = load_blends(path).values()
    record = blend.tables[0].meta.get("learned")
    return None if record is None else Learned(blend, record)


def learn(
    config: TableConfig,
    model: NetworkModel,
    teacher: Teacher,
    nfe: int,
    folder: Path,
    progress: Progress,
) -> tuple[Blend, dict[str, Any]]:
    """The tables of one NFE, and the record of how; what stops goes on from `folder`."""
    clock = time.process_time()
    kept = folder / "refinement.json"
    begun: dict[str, Any] = read_json(kept) if kept.exists() else {"seconds": 0.0, "state": None}
    count = first_batches(teacher.batches, config.samples)
    objective = objective_of(config, model, teacher)
    lessons, held_out = teacher.batches[:count], teacher.batches[count:]

    def spent() -> float:
        return begun["seconds"] + time.process_time() - clock

    def keep(state: Refinement) -> None:
        said = {**asdict(state), "judged": number(state.judged)}
        write_json(kept, {"seconds": spent(), "state": said})

    said = begun["state"]
    state = None if said is None else Refinement(**{**said, "judged": float(said["judged"])})
    if state is not None:
        # What they were fitted to, and where, was found before.
        tables = list(map(Tableau.from_dict, state.tables))
    elif config.fitted:
        tables = closest(config, teacher.part(0, count), nfe, objective, progress)
    else:
        table = plain(config.base, grid(model.schedule, nfe, config.spacing))
        tables = [table] * len(config.knots)
    if config.steps:
        tables = refine(
            lessons,
            tables,
            what=config.what,
            steps=config.steps,
            free=config.free,
            objective=objective,
            held_out=held_out,
            at_once=first_batches(lessons, min(config.sketch, config.samples)),
            begun=state,
            keep=keep,
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
            facts={"model": model.fingerprint},
        )
        accelerator = accelerator_for(config.training, folder, model.device)
        train(task, config.training, folder, accelerator, progress)
        candidates = (tables, [module.table()])
        tables = min(candidates, key=lambda each: objective.loss(held_out, each))
    found = peers(teacher, held_out, nfe)
    peer = min(found, key=lambda name: found[name])
    record = {
        "error": distance(held_out, tables),
        "peer": peer,
        "peer_error": found[peer],
        "seconds": spent(),
        "seeds": f"{config.first_seed}-{config.first_seed + config.samples + config.held_out - 1}",
        "settings": config.model_dump(mode="json", exclude_defaults=True, exclude={"nfe"}),
    }
    return Blend(config.knots, tuple(tables)), record


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
        # Of sets, so few samples say little.
        objective=replace(objective, likeness=0.0),
        progress=progress,
    )
    nodes, met = teacher.trajectories(chosen.places)
    return fit_rows(met, nodes, base=config.base, free=config.free).tables


def objective_of(config: TableConfig, model: NetworkModel, teacher: Teacher) -> Objective:
    """The objective, with features in units of their deviation over the teacher's samples.

    Sets are to be like the real images, where the model names some, or else like the teacher's.

    Features are those of images: of latents, decoded.
    """
    if config.features is None:
        return Objective(config.loss, config.eps)
    built = extractor(config.features.id, model.device, **config.features.options)

    def raw(x: Tensor) -> Tensor:
        return unrounded(built, x if model.decode is None else model.decode(x))

    with torch.no_grad():
        found = torch.cat([raw(batch.states[-1]) for batch in teacher.batches])
    scale = found.std(0).mean()

    def features(x: Tensor) -> Tensor:
        return raw(x) / scale

    single = Objective(config.loss, config.eps, features, config.feature_weight)
    if not config.likeness:
        return single
    data = config.model.data
    real = found if data is None else outputs_of(open_images(data), built).features
    moments = FrechetCoordinates.of(real.flatten(1).to(found.device) / scale)
    goal = None if data is None else moments.expected
    return replace(single, moments=moments, goal=goal, likeness=config.likeness)


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
