"""The cells that get the same noise and labels, and the jobs that make them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...samplers import Tableau
from ...storage import digest
from ..extras import extras_of
from ..job import Job, Keep
from ..models import Draw, label_rule
from ..parts import parts_of
from .config import BenchConfig
from .contestant import Contestant
from .plan import Cell, Panel, panels, plan, reference_tables

OF_JOB: dict[str, Keep] = {"none": "none", "features": "none", "png": "png", "npz": "npz"}


@dataclass(frozen=True, eq=False)
class Round:
    """The cells of a panel that start at one seed: all get the same noise and labels."""

    config: BenchConfig
    ready: Contestant
    panel: Panel
    seed: int
    folder: Path

    @cached_property
    def draw(self) -> Draw:
        """The seeds and labels."""
        config, model = self.config, self.ready.model
        seeds = range(self.seed, self.seed + config.images)
        labels = label_rule(config.labels, model.classes, model.shape, seeds, config.noise_device)
        return Draw(seeds, labels, self.panel.guidance, config.noise_device)

    @cached_property
    def cells(self) -> list[Cell]:
        """What is to be run, cheap cells first."""
        return plan(self.config, self.ready.model.schedule, self.panel, self.seed)

    @cached_property
    def references(self) -> tuple[Job, Job] | None:
        """The jobs of the converged samples and of their check, if any are asked for."""
        asked = self.config.reference
        if asked is None:
            return None
        exact, check = reference_tables(asked, self.config.end, self.ready.model.schedule)
        images = min(asked.images, self.config.images)
        checked = min(asked.check_images, images)
        converged = replace(self.job(exact, images), keep="samples")
        if images < self.config.images:
            # Of fewer samples, distances would be biased otherwise than those of the cells.
            converged = replace(converged, extractors=())
        return converged, replace(self.job(check, checked), extractors=(), **target_of(converged))

    @property
    def reference_folders(self) -> tuple[Path, Path]:
        """Where the shards of the two go."""
        if self.references is None:
            raise ValueError("this benchmark has no reference")
        # By all samples: two runs in one folder leave each other's alone.
        first, second = (
            digest([job.key(shard) for shard in job.shards]) for job in self.references
        )
        return self.shards_of(f"reference-{first}"), self.shards_of(f"check-{second}")

    def job(self, table: Tableau, images: int | None = None) -> Job:
        """The job of a table on the first `images` seeds, or all."""
        return Job(
            self.ready.model,
            table,
            self.draw.part(slice(0, images)),
            tuple(self.ready.extractors.values()),
            preview=self.config.preview,
            batch_size=self.config.batch_size,
            shard_size=self.config.shard_size,
        )

    def job_of(self, cell: Cell) -> Job:
        """The job of a cell; its target comes when there is one."""
        target = target_of(self.references[0]) if self.references else {}
        model, job = self.ready.model, self.job(cell.table)
        draw = replace(job.draw, extras=extras_of(cell.solver, cell.planned, model))
        return replace(job, draw=draw, keep=OF_JOB[self.config.keep], **target)

    def shards_of(self, name: str) -> Path:
        """Where shards go."""
        return self.folder / "shards" / name

    def shards_of_cell(self, cell: Cell, job: Job) -> Path:
        """Where those of a cell go: apart from those of other settings."""
        return self.shards_of(f"{cell.slug}-{job.sampler_key[:8]}")

    def file_of_reference(self, key: str) -> Path:
        """Where goes what was measured of the converged samples."""
        return self.folder / "cells" / f"reference-{key}.npz"

    def file_of(self, cell: Cell, key: str) -> Path:
        """Where the result of a cell goes: beside those of other settings, not over them."""
        return self.folder / "cells" / f"{cell.slug}-{key[:8]}.npz"


def rounds(config: BenchConfig, ready: Contestant, folder: Path) -> list[Round]:
    """Every guidance scale and first seed of a model."""
    return [
        Round(config, ready, panel, seed, folder)
        for panel in panels(config)
        if panel.model == ready.name
        for seed in config.seeds
    ]


def target_of(reference: Job) -> dict[str, Any]:
    """What a job has to know of the samples that it is compared with, before there are any."""
    return {"target_key": reference.sampler_key, "target_size": len(reference.draw.seeds)}


def all_keys(job: Job) -> str:
    """One digest for all parts of a job."""
    return digest(sorted(part.key for shard in job.shards for part in parts_of(job, shard)))
