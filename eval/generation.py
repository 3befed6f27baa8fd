"""Images at scale: any model, one solver, as many seeds as wanted, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, NonNegativeInt, PositiveInt, model_validator

from ..schedules.grid import End
from ..storage import digest, environment, read_json, write_arrays, write_json
from .extractors import Extractor
from .extras import extras_of
from .job import Job, numbers
from .models import Draw, LabelRule, Model, label_rule, pick_device
from .processes import ALONE, Processes, check_shared
from .progress import Counter, Progress, silent
from .settings import (
    SEEDS,
    STRICT,
    ExtractorConfig,
    ModelConfig,
    NoiseDevice,
    SolverConfig,
    planned,
)
from .shards import collect, outstanding, run_job

# The file that says what the images of a folder are.
SETTINGS = "generate.json"
SHARDS, SAMPLES = "shards", "samples.npz"
# What may change from one call to the next: it decides how much is kept, and how fast.
FREE = ("first", "count", "batch_size", "extractors", "keep")
# Settings that only say what these digests decide.
DECIDED = {"model": "weights"} | dict.fromkeys(("solver", "nfe", "spacing", "end"), "table")


class GenerateConfig(BaseModel):
    """What `fewstep generate` makes: seeds `first` to `first` + `count` - 1 of one sampler."""

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    solver: SolverConfig = SolverConfig(name="unipc-3")
    nfe: PositiveInt = 10
    spacing: str = "uniform"
    end: End = "zero"
    first: NonNegativeInt = 0
    count: PositiveInt = 100
    labels: LabelRule = "balanced"
    guidance: float = 1.0
    noise_device: NoiseDevice = "cpu"
    keep: Literal["png", "npz", "none"] = "png"
    extractors: tuple[ExtractorConfig, ...] = ()
    batch_size: PositiveInt = 100
    shard_size: PositiveInt = 1000

    @model_validator(mode="after")
    def sensible(self) -> GenerateConfig:
        """Refuse to throw everything away, and seeds that stand for the same noise."""
        if self.keep == "none" and not self.extractors:
            raise ValueError("keep: none without extractors keeps nothing; give one of the two")
        if self.first + self.count > SEEDS:
            raise ValueError(f"seeds end at {SEEDS - 1}: noise is that of the seed modulo {SEEDS}")
        return self


def job_for(config: GenerateConfig, model: Model, extractors: tuple[Extractor, ...]) -> Job:
    """The job of a config on a loaded model; ValueError for what the model cannot do."""
    pick_device(config.noise_device)
    law, scale = model.schedule, config.guidance
    plan = planned(law, config.solver, config.nfe, config.spacing, config.end, scale)
    seeds = range(config.first, config.first + config.count)
    labels = label_rule(config.labels, model.classes, model.shape, seeds, config.noise_device)
    extras = extras_of(config.solver, plan, model)
    draw = Draw(seeds, labels, config.guidance, config.noise_device, extras)
    return Job(
        model,
        plan.table,
        draw,
        extractors,
        keep=config.keep,
        preview=0,
        batch_size=config.batch_size,
        shard_size=config.shard_size,
    )


def run_generate(
    config: GenerateConfig,
    job: Job,
    folder: Path,
    progress: Progress = silent,
    processes: Processes = ALONE,
    force: bool = False,
) -> dict[str, Any]:
    """Make what `folder` does not hold yet, and return what was made and how long it took.

    Images go to `folder` as PNG (000000/000123.png, the seed as the name) or to samples.npz
    (`arr_0` uint8 [N, H, W, C], as ADM's evaluator reads them). The same command goes on where it
    was stopped, with any number of processes; more seeds, or others, may be asked for. Raises
    ValueError if the folder holds images of other settings; `force` removes those.
    """
    check_shared(folder, processes)
    claim(config, job, folder, processes, force)
    shards = folder / SHARDS
    mine = outstanding(job, shards, folder)[processes.rank :: processes.count]
    total = sum(work.samples for work in mine) * job.calls_per_image
    counter = Counter(progress, total, f"{job.table.name}, NFE {job.table.nfe}")
    run_job(job, shards, counter.add, processes, pictures=folder)
    if not processes.first:
        return {}
    arrays = collect(job, shards)
    if config.keep == "npz":
        pixels = np.ascontiguousarray(arrays["pixels"].transpose(0, 2, 3, 1))
        write_arrays(folder / SAMPLES, "", {"arr_0": pixels, "seeds": arrays["seeds"]})
    images = len(arrays["seeds"])
    return {
        "images": images,
        "nfe": job.table.nfe,
        "calls_per_image": float(arrays["calls"]) / images,
        "seconds_per_image": float(arrays["seconds"]) / images,
        "outside": float(arrays["outside"].mean()),
    }


def claim(
    config: GenerateConfig, job: Job, folder: Path, processes: Processes, force: bool
) -> None:
    """Write the settings into a folder; ValueError with a diff if it has those of other images."""
    path = folder / SETTINGS
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in FREE}
    digests = {
        "weights": job.model.fingerprint,
        "table": digest(*numbers(job.table), *job.draw.extras.parts),
    }
    mine = settings | digests
    theirs = read_json(path)["settings"] if path.exists() else mine
    other = {key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)}
    said = [key for key in settings if key in other and DECIDED.get(key, key) in other]
    changed = [
        f"{key}: {brief(theirs.get(key))} there, {brief(mine.get(key))} asked for"
        for key in said or sorted(other & set(digests))
    ]
    if changed and not force:
        raise ValueError(
            f"{folder} holds images of other settings ({'; '.join(changed)}): give another --out, "
            "or --force to remove them and make these"
        )
    # All must have read before the first writes.
    processes.wait()
    if processes.first:
        if changed:
            clear(folder)
        write_json(path, {"settings": mine, "environment": environment(job.model.device)})
    processes.wait()


def brief(value: Any) -> Any:
    """A setting as people would write it: of many only those that are set."""
    if not isinstance(value, dict):
        return value
    found = {key: brief(each) for key, each in value.items() if each not in (None, "", [], {})}
    return next(iter(found.values())) if len(found) == 1 else found


def clear(folder: Path) -> None:
    """Remove the images that `run_generate` made, so that no two kinds stand side by side."""
    for pattern in (f"{SHARDS}/*.npz", "[0-9]*/[0-9]*.png", SAMPLES):
        for path in folder.glob(pattern):
            path.unlink()
