"""A job: which images are made, and what is kept of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from ..samplers import Tableau
from ..storage import digest
from .extractors import Extractor
from .models import Draw, Model

# "none": features only; "png", "npz": the images too; "samples": before they are rounded.
Keep = Literal["none", "png", "npz", "samples"]


@dataclass(frozen=True, eq=False)
class Job:
    """The images of `model` under `table` on the seeds and labels of `draw`.

    `extractors` are the features that are kept of them. The first `preview` images are kept
    whatever `keep` says, and the squared distance to `target` [R, C, H, W] of the first R =
    `target_size`, which `target_key` identifies. A shard of `shard_size` images is the unit of
    work: one process makes it, in batches of `batch_size`, and each of its parts (see `parts_of`)
    counts as done when its file is there.
    """

    model: Model
    table: Tableau
    draw: Draw
    extractors: tuple[Extractor, ...] = ()
    keep: Keep = "none"
    target: Tensor | None = None
    target_key: str = ""
    target_size: int = 0
    preview: int = 100
    batch_size: int = 100
    shard_size: int = 1000

    def __post_init__(self) -> None:
        names = [each.name for each in self.extractors]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two extractors are called {max(names, key=names.count)}: take one of them"
            )

    @property
    def shards(self) -> list[range]:
        """The positions of every shard's samples."""
        total = len(self.draw.seeds)
        size = self.shard_size
        return [range(first, min(first + size, total)) for first in range(0, total, size)]

    @property
    def calls_per_image(self) -> int:
        """Evaluations of the network for one image: guidance doubles those of the denoiser."""
        return self.table.nfe * (1 if self.draw.guidance == 1 else 2)

    @property
    def sampler_key(self) -> str:
        """Digest of all that decides the samples besides their seeds and labels."""
        draw = self.draw
        parts = [self.model.fingerprint, *numbers(self.table), float(draw.guidance), draw.source]
        return digest(*parts, *draw.extras.parts)

    def key(self, shard: range) -> str:
        """Digest of all that decides the samples of a shard.

        The size of the whole set is not in it, so that a larger run goes on from a smaller one; the
        batch size is not, because a sample does not depend on its batch; nor is what is kept.
        """
        part = self.draw.part(slice(shard.start, shard.stop))
        labels = "none" if part.labels is None else part.labels.numpy()
        return digest(self.sampler_key, np.asarray(part.seeds), labels)


def numbers(table: Tableau) -> list[Any]:
    """All that decides what a table computes, for a digest."""
    nodes = [table.grid.alpha, table.grid.sigma, table.grid.label]
    # Left out where there is none: samples of tables without keep the names they were stored under.
    bias = [table.bias] if table.bias.any() else []
    return [table.basis, table.carry, table.weights, table.noise, *bias, *nodes]
