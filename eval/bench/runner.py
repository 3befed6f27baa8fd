"""The benchmark runner: cell by cell, shard by shard, resumable, on several processes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...storage import digest, environment, read_arrays, write_arrays
from ..job import Job
from ..parts import Arrays
from ..processes import ALONE, Processes, check_shared
from ..progress import Counter, Progress, silent
from ..settings import ModelConfig
from ..shards import NotFinite, collect, outstanding, run_job
from .config import BenchConfig
from .contestant import Contestant
from .plan import Cell, Panel
from .record import Result, Target, about, measured, outcome_of, provenance, written
from .round import Round, all_keys, rounds


@dataclass(frozen=True, eq=False)
class Run:
    """A benchmark in `folder`: settings, facts for the record, results so far, cells to come.

    `unseen` are models that an interrupted run had not come to.
    """

    config: BenchConfig
    folder: Path
    facts: dict[str, Any]
    results: tuple[Result, ...]
    targets: dict[tuple[Panel, int], Target]
    missing: tuple[Cell, ...]
    unseen: tuple[str, ...] = ()
    interrupted: bool = False


@dataclass(frozen=True, eq=False)
class Finding:
    """What a run found out about one model."""

    facts: dict[str, Any]
    environment: dict[str, str]
    results: list[Result]
    targets: dict[tuple[Panel, int], Target]
    missing: list[Cell]
    interrupted: bool


def run_bench(
    config: BenchConfig,
    folder: Path,
    prepare: Callable[[ModelConfig], Contestant],
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Run:
    """Run what `folder` does not hold yet of `config`, and return all results.

    A finished cell is a file in `folder/cells` with the digest of everything that it depends on in
    its name, so that other settings have other files; an unfinished one has its shards in
    `folder/shards`. Ctrl-C ends the run with the results so far. `prepare` loads a model when its
    turn comes, and `progress(done, total, text)` counts network evaluations times images.
    """
    check_shared(folder, processes)
    counter = Counter(progress)
    parts: dict[str, Finding] = {}
    for asked in config.models:
        try:
            # Nothing of a model stays behind when the next is loaded.
            parts[asked.name] = run_model(config, prepare(asked), folder, counter, processes)
        except KeyboardInterrupt:
            break
        if parts[asked.name].interrupted:
            break
    found = list(parts.values())
    facts: dict[str, Any] = {
        "models": {name: part.facts for name, part in parts.items()},
        "environment": found[0].environment if found else environment(torch.device("cpu")),
        "processes": processes.count,
    }
    unseen = tuple(asked.name for asked in config.models if asked.name not in parts)
    return Run(
        config,
        folder,
        facts,
        tuple(result for part in found for result in part.results),
        {key: target for part in found for key, target in part.targets.items()},
        tuple(cell for part in found for cell in part.missing),
        unseen,
        bool(unseen) or any(part.interrupted for part in found),
    )


def run_model(
    config: BenchConfig, ready: Contestant, folder: Path, counter: Counter, processes: Processes
) -> Finding:
    """All rounds of one model; Ctrl-C ends them with what is there."""
    results: list[Result] = []
    missing: list[Cell] = []
    targets: dict[tuple[Panel, int], Target] = {}
    interrupted = False
    for turn in rounds(config, ready, folder):
        tasks = survey(turn)
        done = {task.cell: task.stored for task in tasks if task.stored is not None}
        try:
            if not interrupted:
                counter.total += calls_left(turn, tasks, processes)
                # All must have looked before the first writes.
                processes.wait()
                target = run_reference(turn, counter, processes)
                if target is not None:
                    targets[turn.panel, turn.seed] = target
                for task in tasks:
                    if task.cell not in done:
                        done[task.cell] = run_cell(turn, task, target, counter, processes)
        except KeyboardInterrupt:
            interrupted = True
        results += [done[task.cell] for task in tasks if task.cell in done]
        missing += [task.cell for task in tasks if task.cell not in done]
    return Finding(
        provenance(ready), environment(ready.device), results, targets, missing, interrupted
    )


@dataclass(frozen=True, eq=False)
class Task:
    """A cell, its job, the digest of all that its result depends on, and that if it is known."""

    cell: Cell
    job: Job
    key: str
    stored: Result | None


def survey(turn: Round) -> list[Task]:
    """What is to be done in a round, and what was done before."""
    jobs = [(cell, turn.job_of(cell)) for cell in turn.cells]
    keyed = [(cell, job, digest(all_keys(job), turn.ready.key)) for cell, job in jobs]
    return [Task(cell, job, key, read_result(turn, cell, key)) for cell, job, key in keyed]


def calls_left(turn: Round, tasks: list[Task], processes: Processes) -> int:
    """Network evaluations x images that a round still takes of this process."""
    todo = [task for task in tasks if task.stored is None]
    parts = [(task.job, turn.shards_of_cell(task.cell, task.job)) for task in todo]
    if turn.references is not None:
        parts += zip(turn.references, turn.reference_folders, strict=True)
    return sum(
        work.samples * job.calls_per_image
        for job, folder in parts
        for work in outstanding(job, folder)[processes.rank :: processes.count]
    )


def run_reference(turn: Round, counter: Counter, processes: Processes) -> Target | None:
    """The converged samples of a round, and how far another solver ends from them.

    They are measured like a cell where there are as many; the first process does that, once.
    """
    if turn.references is None:
        return None
    counter.text = "reference"
    exact, check = turn.references
    first, second = turn.reference_folders
    run_job(exact, first, counter.add, processes)
    arrays = collect(exact, first)
    samples = torch.from_numpy(arrays["samples"])
    check = replace(check, target=samples)
    run_job(check, second, counter.add, processes)
    key = digest(all_keys(exact), all_keys(check), turn.ready.key)
    path = turn.file_of_reference(key)
    if processes.first and read_arrays(path, key) is None:
        gap = collect(check, second)["square_error"]
        whole = len(samples) == turn.config.images
        outcome = {
            "rmse_to_check": math.sqrt(gap.mean()),
            "checked_images": len(gap),
            "values": written(measured(turn.ready, arrays)) if whole else {},
        }
        write_arrays(path, key, {"outcome": as_array(outcome)})
    processes.wait()
    return Target(samples, json.loads(str(known(path, key)["outcome"])))


def run_cell(
    turn: Round, task: Task, target: Target | None, counter: Counter, processes: Processes
) -> Result:
    """Make the samples of a cell and measure them; the first process measures and writes."""
    cell, job = task.cell, replace(task.job, target=None if target is None else target.samples)
    folder, path = turn.shards_of_cell(cell, job), turn.file_of(cell, task.key)
    counter.text = cell.slug
    peak = memory_mark(turn.ready.device)
    try:
        run_job(job, folder, counter.add, processes)
    except NotFinite as error:
        outcome: dict[str, Any] = {"not_finite": error.seeds, "values": {}}
        pixels = np.zeros((0, 1, 1, 1), dtype=np.uint8)
    else:
        arrays = collect(job, folder) if processes.first else {}
        if processes.first:
            outcome = {"not_finite": [], **outcome_of(turn.ready, arrays)}
            pixels = arrays["pixels"][: job.preview]
    if processes.first:
        encoded = as_array(outcome | {"peak_bytes": peak()})
        write_arrays(path, task.key, {"outcome": encoded, "pixels": pixels})
        if turn.config.keep == "none":
            shutil.rmtree(folder, ignore_errors=True)
    processes.wait()
    return result_of(turn, cell, known(path, task.key))


def as_array(outcome: dict[str, Any]) -> np.ndarray:
    """JSON values for an npz file; NaN is refused."""
    return np.asarray(json.dumps(outcome, allow_nan=False))


def known(path: Path, key: str) -> Arrays:
    """What the first process wrote; ValueError if this one cannot see it."""
    arrays = read_arrays(path, key)
    if arrays is None:
        raise ValueError(
            f"{path} was written and cannot be read: is the folder shared, the disk full?"
        )
    return arrays


def read_result(turn: Round, cell: Cell, key: str) -> Result | None:
    """The stored result of a cell, None if there is none or it belongs to another setting."""
    arrays = read_arrays(turn.file_of(cell, key), key)
    return None if arrays is None else result_of(turn, cell, arrays)


def result_of(turn: Round, cell: Cell, arrays: Arrays) -> Result:
    """The result in a file."""
    # What a cell is called in this run is not stored: it may have been part of another.
    record = about(cell, turn.config.images) | json.loads(str(arrays["outcome"]))
    return Result(cell, record, torch.from_numpy(arrays["pixels"]))


def memory_mark(device: torch.device) -> Callable[[], int | None]:
    """A function that tells the most bytes allocated on a CUDA device since now, None elsewhere."""
    if device.type != "cuda":
        return lambda: None
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device)
