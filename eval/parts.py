"""What is kept of a shard: its parts, each a file with the digest of all that decides it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..storage import digest
from .extractors import Extractor
from .images import load_image, quantise, save_image
from .job import Job

Arrays = dict[str, np.ndarray]
Source = Literal["run", "samples", "pixels"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images [B, C, H, W] at positions `rows` of a job; PNGs go below `pictures`.

    They are float about [-1, 1] if they were just made, uint8 if they were kept.
    """

    rows: slice
    seeds: np.ndarray
    images: Tensor
    pictures: Path

    @cached_property
    def pixels(self) -> Tensor:
        """As uint8."""
        return self.images if self.images.dtype == torch.uint8 else quantise(self.images)


@dataclass(frozen=True, eq=False)
class Part:
    """Something that is kept of a shard: `make` gives its arrays for one batch.

    It is made of what a `source` gives: a run of the sampler, its samples, or these rounded; kept
    ones will do. `beside(pictures, seeds)` says whether what it put beside its file is still there.
    """

    name: str
    key: str
    make: Callable[[Batch], Arrays]
    source: Source = "pixels"
    beside: Callable[[Path, Sequence[int]], bool] | None = None


def parts_of(job: Job, shard: range) -> list[Part]:
    """All that a job keeps of a shard."""
    key = job.key(shard)
    shown = min(job.preview - shard.start, len(shard))
    found = [Part("facts", key, facts, "run")]
    if job.keep == "npz":
        found.append(Part("pixels", key, all_pixels))
    elif shown > 0:
        found.append(Part("preview", digest(key, shown), partial(first_pixels, job.preview)))
    if job.keep == "png":
        found.append(Part("png", key, write_pngs, beside=has_pngs))
    if job.keep == "samples":
        found.append(Part("samples", key, samples, "samples"))
    near = min(job.target_size - shard.start, len(shard))
    if near > 0:
        # The same samples of the reference, of however many.
        mark = digest(key, job.target_key, near)
        found.append(Part("error", mark, partial(square_error, job), "samples"))
    for each in job.extractors:
        mark = digest(key, each.fingerprint)
        found.append(Part(f"features-{each.name}", mark, partial(features, each)))
    return found


def facts(batch: Batch) -> Arrays:
    """The seeds, and the share of values that an image has no room for."""
    outside = (batch.images.abs() > 1).flatten(1).double().mean(1)
    return {"seeds": batch.seeds, "outside": outside.cpu().numpy()}


def samples(batch: Batch) -> Arrays:
    """The images before they are rounded."""
    return {"samples": batch.images.float().cpu().numpy()}


def square_error(job: Job, batch: Batch) -> Arrays:
    """The mean squared distance of each image to the target, of those that have one."""
    if job.target is None:
        raise ValueError("a job with a target_size needs the target to be run")
    near = job.target[batch.rows].to(batch.images)
    gap = (batch.images[: len(near)] - near).double().square().flatten(1).mean(1)
    return {"square_error": gap.cpu().numpy()}


def all_pixels(batch: Batch) -> Arrays:
    """The images."""
    return {"pixels": batch.pixels.cpu().numpy()}


def first_pixels(preview: int, batch: Batch) -> Arrays:
    """Those of the images that belong to the preview."""
    return {"pixels": batch.pixels[: max(0, preview - batch.rows.start)].cpu().numpy()}


def features(extractor: Extractor, batch: Batch) -> Arrays:
    """All that an extractor gives."""
    found = extractor(batch.pixels)._asdict().items()
    named = {f"{extractor.name}/{kind}": values for kind, values in found if values is not None}
    return {name: values.cpu().numpy() for name, values in named.items()}


def write_pngs(batch: Batch) -> Arrays:
    """Checksums of the images that were written."""
    host = batch.pixels.cpu()
    for seed, image in zip(batch.seeds.tolist(), host, strict=True):
        save_image(image, png_path(batch.pictures, seed))
    return {"checksums": np.asarray([checksum(image) for image in host])}


def has_pngs(folder: Path, seeds: Sequence[int]) -> bool:
    """Whether there is an image of every seed."""
    return all(png_path(folder, seed).exists() for seed in seeds)


def read_pngs(folder: Path, seeds: Sequence[int], checksums: np.ndarray) -> Tensor | None:
    """The images that `write_pngs` wrote, uint8 [N, C, H, W]; None if they are there no more."""
    try:
        images = [load_image(png_path(folder, seed)) for seed in seeds]
    # Anyone may have changed them since, into anything.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if [checksum(image) for image in images] != checksums.tolist():
        return None
    return torch.stack(images)


def checksum(image: Tensor) -> int:
    """CRC-32 of an image's values."""
    return zlib.crc32(image.contiguous().numpy().tobytes())


def png_path(folder: Path, seed: int) -> Path:
    """Where the image of a seed goes: a folder per thousand, as EDM's scripts lay them out."""
    return folder / f"{seed - seed % 1000:06d}" / f"{seed:06d}.png"
