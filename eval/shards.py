"""Doing a job: shard by shard, on any number of processes, from wherever it was stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .extractors.extractor import full_precision
from .images import quantise, save_image
from .job import Job
from .models import counting
from .processes import ALONE, Processes
from .store import read_arrays, read_json, write_arrays, write_json

Arrays = dict[str, np.ndarray]
OnCall = Callable[[int], None]
# Batches that wait for their features while the next are made.
AHEAD = 2
FAILED = "not-finite-"


class NotFinite(ArithmeticError):
    """A sampler that made something that is no image; `seeds` are those it did it on."""

    def __init__(self, seeds: list[int]):
        self.seeds = seeds
        shown = ", ".join(map(str, seeds[:5])) + (", .." if len(seeds) > 5 else "")
        super().__init__(
            f"{len(seeds)} samples are not finite (NaN or infinite), seeds {shown}: the solver "
            "diverged; take more steps, a lower order or another spacing"
        )


def shard_path(job: Job, folder: Path, shard: range) -> Path:
    """The file of a shard, by its first seed: other seeds of the same settings may lie beside."""
    return folder / f"{job.draw.seeds[shard.start]:08d}.npz"


def missing_shards(job: Job, folder: Path) -> list[range]:
    """The shards that `folder` does not hold, or holds of another job."""
    return [shard for shard in job.shards if stored(job, folder, shard) is None]


def stored(job: Job, folder: Path, shard: range) -> Arrays | None:
    """What `folder` holds of a shard; None if nothing, or damaged, or of another job."""
    return read_arrays(shard_path(job, folder, shard), job.key(shard))


def run_job(
    job: Job,
    folder: Path,
    on_call: OnCall = lambda images: None,
    processes: Processes = ALONE,
    images: Path | None = None,
) -> None:
    """Make the shards that `folder` does not hold yet; return when every process has made its own.

    PNGs go below `images`, or else beside the shards.

    The statistics of the whole do not depend, to the last bit, on the number of processes, nor on
    how often and where the run was stopped: who makes a shard makes it in the same batches, and
    shards are added up in order. `on_call(images)` is told of every evaluation of the network.
    Raises NotFinite in every process if samples of any are, and ValueError where the memory of the
    device is too small for a batch; the shards before are kept.
    """
    todo = missing_shards(job, folder)
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
            for shard in todo[processes.rank :: processes.count]:
                arrays = make(job, shard, images or folder, worker, stream)
                write_arrays(shard_path(job, folder, shard), job.key(shard), arrays)
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
    shard: range,
    folder: Path,
    worker: ThreadPoolExecutor,
    stream: torch.cuda.Stream | None,
) -> Arrays:
    """The content of one shard; features are extracted while the next batch is sampled.

    PNGs go below `folder`.
    """
    calls = 0

    def count(images: int) -> None:
        nonlocal calls
        calls += images

    waiting: deque[Future[Arrays]] = deque()
    parts: list[Arrays] = []
    elapsed = 0.0
    with counting(job.model.network, count):
        for first in range(shard.start, shard.stop, job.batch_size):
            rows = slice(first, min(first + job.batch_size, shard.stop))
            start = time.perf_counter()
            images = job.model.images(job.table, job.draw.part(rows))
            if images.device.type == "cuda":
                torch.cuda.current_stream(images.device).synchronize()
            elapsed += time.perf_counter() - start
            waiting.append(worker.submit(beside, stream, reduce, job, images, rows, folder))
            if len(waiting) > AHEAD:
                parts.append(waiting.popleft().result())
        parts += [each.result() for each in waiting]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    facts = {"seconds": np.asarray(elapsed), "calls": np.asarray(calls)}
    return arrays | facts


def reduce(job: Job, images: Tensor, rows: slice, folder: Path) -> Arrays:
    """What is kept of one batch: float32 images [B, C, H, W] in [-1, 1] at positions `rows`."""
    seeds = np.asarray(job.draw.seeds[rows])
    bad = ~images.isfinite().flatten(1).all(1)
    if bad.any():
        raise NotFinite(seeds[bad.cpu().numpy()].tolist())
    pixels = quantise(images)
    arrays: Arrays = {
        "seeds": seeds,
        "outside": (images.abs() > 1).flatten(1).double().mean(1).cpu().numpy(),
    }
    for extractor in job.extractors:
        for kind, values in extractor(pixels)._asdict().items():
            if values is not None:
                arrays[f"{extractor.name}/{kind}"] = values.cpu().numpy()
    if job.target is not None:
        near = job.target[rows].to(images)
        gap = (images[: len(near)] - near).double().square().flatten(1).mean(1)
        arrays["square_error"] = gap.cpu().numpy()
    host = pixels.cpu()
    arrays["pixels"] = host[: len(host) if job.keep == "npz" else kept(job, rows)].numpy()
    if job.keep == "samples":
        arrays["samples"] = images.float().cpu().numpy()
    if job.keep == "png":
        for seed, picture in zip(seeds.tolist(), host, strict=True):
            save_image(picture, png_path(folder, seed))
    return arrays


def kept(job: Job, rows: slice) -> int:
    """How many images of a batch belong to the preview."""
    return max(0, min(job.preview, rows.stop) - rows.start)


def png_path(folder: Path, seed: int) -> Path:
    """Where the image of a seed goes: a folder per thousand, as EDM's scripts lay them out."""
    return folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png"


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A CUDA stream for the features, so that sampling goes on meanwhile; None on the CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def beside(
    stream: torch.cuda.Stream | None,
    work: Callable[..., Arrays],
    job: Job,
    images: Tensor,
    *rest: Any,
) -> Arrays:
    """Do `work` on a stream of its own."""
    if stream is None:
        return work(job, images, *rest)
    images.record_stream(stream)
    with torch.cuda.stream(stream):
        return work(job, images, *rest)


def collect(job: Job, folder: Path) -> Arrays:
    """The arrays of all shards joined in order of the samples; totals are added up.

    Raises ValueError if a shard is missing, damaged or of another job.
    """
    parts = []
    for shard in job.shards:
        arrays = stored(job, folder, shard)
        if arrays is None:
            path = shard_path(job, folder, shard)
            raise ValueError(f"{path} is missing or damaged: run it again")
        parts.append(arrays)
    return {
        name: np.concatenate([part[name] for part in parts])
        if parts[0][name].ndim
        else np.sum([part[name] for part in parts])
        for name in parts[0]
    }
