"""Doing a job: shard by shard, on any number of processes, from wherever it was stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..storage import read_arrays, read_json, write_arrays, write_json
from .job import Job
from .models import counting
from .parts import Arrays, Batch, Part, parts_of, read_pngs
from .precision import full_precision
from .processes import ALONE, Processes

OnCall = Callable[[int], None]
# Gives the images of some positions: samples about [-1, 1], or uint8.
Images = Callable[[slice], Tensor]
# Batches that wait for their features while the next are made.
AHEAD = 2
FAILED = "not-finite-"


class NotFinite(ArithmeticError):
    """A sampler that made something that is no image; `seeds` are the first it did it on."""

    def __init__(self, seeds: list[int]):
        self.seeds = seeds
        shown = ", ".join(map(str, seeds[:5])) + (", .." if len(seeds) > 5 else "")
        super().__init__(
            f"at least {len(seeds)} samples are not finite (NaN or infinite), seeds {shown}: the "
            "solver diverged; take more steps, a lower order or another spacing"
        )


@dataclass(frozen=True, eq=False)
class Work:
    """A shard with `lacking` parts; `kept` reads its images where all that is needed was kept."""

    shard: range
    lacking: tuple[Part, ...]
    kept: Callable[[], Tensor | None] | None

    @property
    def samples(self) -> int:
        """How many samples are to be made."""
        return len(self.shard) if self.kept is None else 0


def shard_path(job: Job, folder: Path, shard: range, part: str) -> Path:
    """The file of a part, by the first seed: other seeds of the same settings may lie beside."""
    return folder / f"{job.draw.seeds[shard.start]:08d}.{part}.npz"


def stored(job: Job, folder: Path, shard: range, part: Part) -> Arrays | None:
    """What `folder` holds of a part; None if nothing, or damaged, or of another job."""
    return read_arrays(shard_path(job, folder, shard, part.name), part.key)


def outstanding(job: Job, folder: Path, pictures: Path | None = None) -> list[Work]:
    """What is to be done for `folder` to hold all parts of all shards; PNGs are in `pictures`."""
    found = []
    for shard in job.shards:
        seeds = job.draw.seeds[shard.start : shard.stop]
        parts = parts_of(job, shard)
        lacking = tuple(
            part
            for part in parts
            if stored(job, folder, shard, part) is None
            or (part.beside and not part.beside(pictures or folder, seeds))
        )
        if lacking:
            kept = keeper(job, folder, shard, lacking, pictures)
            # What was not fit to be read is written again.
            again = [part for part in parts if part.beside and kept is None]
            found.append(Work(shard, (*lacking, *(p for p in again if p not in lacking)), kept))
    return found


def keeper(
    job: Job, folder: Path, shard: range, lacking: Sequence[Part], pictures: Path | None
) -> Callable[[], Tensor | None] | None:
    """What reads the images that `lacking` parts are made of, if they were kept in whatever way.

    They are read here to see that, and again when their turn comes: memory has no room for all.
    """
    kept = {
        "samples": partial(kept_arrays, job, folder, shard, "samples"),
        "pixels": partial(kept_arrays, job, folder, shard, "pixels"),
        "pictures": partial(kept_pictures, job, folder, shard, pictures or folder),
    }
    needed = {part.source for part in lacking}
    ways = [] if "run" in needed else ["samples"] if "samples" in needed else list(kept)
    return next((kept[way] for way in ways if kept[way]() is not None), None)


def kept_arrays(job: Job, folder: Path, shard: range, part: str) -> Tensor | None:
    """The images of a shard in the part of that name; None if they are not there."""
    arrays = read_arrays(shard_path(job, folder, shard, part), job.key(shard))
    return None if arrays is None else torch.from_numpy(arrays[part])


def kept_pictures(job: Job, folder: Path, shard: range, pictures: Path) -> Tensor | None:
    """The images of a shard in PNG files; None if they are not there, or were changed."""
    arrays = read_arrays(shard_path(job, folder, shard, "png"), job.key(shard))
    seeds = job.draw.seeds[shard.start : shard.stop]
    return None if arrays is None else read_pngs(pictures, seeds, arrays["checksums"])


def run_job(
    job: Job,
    folder: Path,
    on_call: OnCall = lambda images: None,
    processes: Processes = ALONE,
    pictures: Path | None = None,
) -> None:
    """Make what `folder` does not hold yet; return when every process has made its own.

    PNGs go below `pictures`, or else beside the shards.

    The statistics of the whole do not depend, to the last bit, on the number of processes, nor on
    how often and where the run was stopped: who makes a shard makes it in the same batches, and
    shards are added up in order. `on_call(images)` is told of every evaluation of the network.
    Raises NotFinite in every process if samples of any are, and ValueError where the memory of the
    device is too small for a batch; the shards before are kept.
    """
    todo = outstanding(job, folder, pictures)
    if processes.first:
        for path in folder.glob(f"{FAILED}*"):
            path.unlink()
    # All must have looked before anyone writes.
    processes.wait()
    try:
        with (
            # Extractors switch TF32 off beside the sampler, for the whole process.
            full_precision(job.model.device.type),
            counting(job.model.network, on_call),
            ThreadPoolExecutor(1) as worker,
        ):
            stream = side_stream(job.model.device)
            for work in todo[processes.rank :: processes.count]:
                made = make(job, work, worker, stream, pictures or folder)
                for part in work.lacking:
                    path = shard_path(job, folder, work.shard, part.name)
                    write_arrays(path, part.key, made[part.name])
    except NotFinite as error:
        # The others are to be met all the same, or they would wait for ever.
        write_json(folder / f"{FAILED}{processes.rank}.json", error.seeds)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{job.model.device} has too little memory for batches of {job.batch_size} images: "
            "take a smaller --batch-size; finished shards are kept, and the same command goes on"
        ) from error
    processes.wait()
    seeds = [seed for path in folder.glob(f"{FAILED}*") for seed in read_json(path)]
    # All must have read before anyone clears the folder.
    processes.wait()
    if seeds:
        raise NotFinite(sorted(seeds))


def make(
    job: Job,
    work: Work,
    worker: ThreadPoolExecutor,
    stream: torch.cuda.Stream | None,
    pictures: Path,
) -> dict[str, Arrays]:
    """What a shard lacks, by part; features are extracted while the next batch is sampled."""
    calls, elapsed = 0, 0.0

    def count(images: int) -> None:
        nonlocal calls
        calls += images

    kept = None if work.kept is None else work.kept()
    images_of = sampler(job) if kept is None else reader(job, work.shard, kept)
    waiting: deque[Future[dict[str, Arrays]]] = deque()
    batches: list[dict[str, Arrays]] = []
    with counting(job.model.network, count):
        for first in range(work.shard.start, work.shard.stop, job.batch_size):
            rows = slice(first, min(first + job.batch_size, work.shard.stop))
            start = time.perf_counter()
            images = images_of(rows)
            elapsed += time.perf_counter() - start
            batch = Batch(rows, np.asarray(job.draw.seeds[rows]), images, pictures)
            waiting.append(worker.submit(beside, stream, work.lacking, batch))
            if len(waiting) > AHEAD:
                batches.append(waiting.popleft().result())
        batches += [each.result() for each in waiting]
    made = {part.name: joined([batch[part.name] for batch in batches]) for part in work.lacking}
    if "facts" in made:
        made["facts"] |= {"seconds": np.asarray(elapsed), "calls": np.asarray(calls)}
    return made


def sampler(job: Job) -> Images:
    """The images of a job, made when they are asked for."""

    def images_of(rows: slice) -> Tensor:
        images = job.model.images(job.table, job.draw.part(rows))
        if images.device.type == "cuda":
            torch.cuda.current_stream(images.device).synchronize()
        return images

    return images_of


def reader(job: Job, shard: range, kept: Tensor) -> Images:
    """The images of a shard that were kept."""

    def images_of(rows: slice) -> Tensor:
        return kept[rows.start - shard.start : rows.stop - shard.start].to(job.model.device)

    return images_of


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A CUDA stream for the features, so that sampling goes on meanwhile; None on the CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def beside(
    stream: torch.cuda.Stream | None, parts: tuple[Part, ...], batch: Batch
) -> dict[str, Arrays]:
    """`reduce`, on a stream of its own where there are streams."""
    if stream is None:
        return reduce(parts, batch)
    batch.images.record_stream(stream)
    with torch.cuda.stream(stream):
        return reduce(parts, batch)


def reduce(parts: tuple[Part, ...], batch: Batch) -> dict[str, Arrays]:
    """What is kept of one batch, by part; NotFinite if images of it are not."""
    bad = ~batch.images.isfinite().flatten(1).all(1)
    if bad.any():
        raise NotFinite(batch.seeds[bad.cpu().numpy()].tolist())
    return {part.name: part.make(batch) for part in parts}


def collect(job: Job, folder: Path) -> Arrays:
    """The arrays of all parts of all shards joined in order of the samples; totals are added up.

    Raises ValueError if one is missing, damaged or of another job.
    """
    found: list[Arrays] = []
    for shard in job.shards:
        arrays: Arrays = {}
        for part in parts_of(job, shard):
            part_arrays = stored(job, folder, shard, part)
            if part_arrays is None:
                path = shard_path(job, folder, shard, part.name)
                raise ValueError(f"{path} is missing or damaged: run it again")
            arrays |= part_arrays
        found.append(arrays)
    return joined(found)


def joined(arrays: list[Arrays]) -> Arrays:
    """Arrays of one name behind each other, of those that have them; totals are added up."""
    return {
        name: np.concatenate([each[name] for each in arrays if name in each])
        if value.ndim
        else np.sum([each[name] for each in arrays])
        for name, value in arrays[0].items()
    }
