"""The statistics of a model for DPM-Solver-v3, from samples of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

from .. import samplers
from ..eval.models import Draw, LabelRule, NetworkModel, label_rule
from ..eval.progress import Progress, silent
from ..eval.settings import STRICT, FirstSeed, ModelConfig, SolverName
from ..samplers import Batch, ModelStatistics, estimate_statistics
from ..schedules import grid


class StatisticsConfig(BaseModel):
    """Which model, and what its statistics are estimated from.

    The data are `samples` of the model, of noises from `first_seed` on, with `labels` and
    `guidance`, drawn by the solver `teacher` in `steps` steps of a `spacing`. `lams` half log-SNRs
    are spread evenly, or named, which laws need that begin at pure noise; networks that cannot be
    derived forward take a `difference` (see `estimate_statistics`).
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    lams: PositiveInt | Annotated[tuple[float, ...], Field(min_length=1)] = 120
    samples: PositiveInt = 1024
    teacher: SolverName = "unipc-3"
    steps: PositiveInt = 20
    spacing: str = "karras"
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    guidance: float = 1.0
    batch_size: PositiveInt = 64
    difference: PositiveFloat | None = None


def find_statistics(
    config: StatisticsConfig, model: NetworkModel, path: Path, progress: Progress = silent
) -> ModelStatistics:
    """Estimate the statistics of a model and write them to `path`.

    Samples are of the network: those of a model of latents are latents.
    """
    table = samplers.build_within(
        config.teacher, config.steps, lambda n: grid(model.schedule, n, config.spacing)
    )
    batches = []
    for first in range(0, config.samples, config.batch_size):
        last = min(first + config.batch_size, config.samples)
        seeds = range(config.first_seed + first, config.first_seed + last)
        labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
        denoiser = model.denoiser_of(Draw(seeds, labels, config.guidance))
        x = samplers.noise(table.grid, model.shape, seeds, device=model.device)
        with torch.no_grad():
            data = samplers.sample(denoiser, table, x, seeds=seeds)
        batches.append(Batch(denoiser, data, seeds))
        progress(last, config.samples, "samples of the model")
    found = estimate_statistics(
        batches, model.schedule, config.lams, difference=config.difference, progress=progress
    )
    settings = config.model_dump(mode="json", exclude_defaults=True)
    found = found.noted(model=model.fingerprint, settings=settings)
    found.save(path)
    return found
