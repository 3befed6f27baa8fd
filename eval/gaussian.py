"""Normal laws of sets of images: what teleportation goes by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..samplers.gaussian_data import SUFFIX, By, GaussianData, load_pca
from ..samplers.gaussian_fit import clusters, fit_gaussian, passes_for
from .images import dequantise
from .progress import Progress, silent
from .settings import StartConfig
from .sources import PACKAGED, ImageSet, open_images
from .statistics import spread

# Images that clusters are found on; all are then told apart by the centres.
SAMPLE = 10_000
# How files of published PCAs end.
PUBLISHED = (".pt", ".pth")


def gaussian_of(
    images: ImageSet,
    by: By = "all",
    rank: int | None = None,
    *,
    count: int = 1,
    batch_size: int = 500,
    progress: Progress = silent,
) -> GaussianData:
    """The normal laws of a set of images in [-1, 1], read batch by batch; see `fit_gaussian`.

    `by` "class" makes one of each label, "cluster" one of each of `count` clusters (k-means on up
    to 10,000 of the images). Raises ValueError for a set without labels, and a class or cluster of
    fewer than 2 images.
    """
    if by == "class":
        if images.labels is None:
            raise ValueError(
                f"{images.name} has no classes: they are the folders that images lie in, `labels` "
                "in an .npz, or numbers in a dataset.json"
            )
        count = int(images.labels.max()) + 1
    chosen = spread(SAMPLE, images.count).tolist()
    group = clusters(dequantise(images.read(chosen)), count) if by == "cluster" else None
    shape = tuple(images.read([0]).shape[1:])
    total = images.count * passes_for(math.prod(shape), rank)
    done = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal done
        first = 0
        for pixels in images.batches(batch_size):
            x, rows = dequantise(pixels), slice(first, first + len(pixels))
            if group is not None:
                labels = group(x)
            elif by == "class" and images.labels is not None:
                labels = images.labels[rows]
            else:
                labels = torch.zeros(len(x), dtype=torch.long)
            yield x, labels
            first += len(pixels)
            done += len(pixels)
            progress(done, total, f"covariance: {images.name}")

    law = fit_gaussian(batches, count, rank)
    named = list(images.classes) if by == "class" else []
    origin = {"images": images.name, "count": images.count, "classes": named}
    return GaussianData(law, shape, by, origin)


def gaussian_from(source: str, classes: bool = False) -> GaussianData:
    """The laws that a setting names: a file of `fewstep stats --gaussian`, a published PCA, mnist.

    Those of mnist are made of the packaged digits, in seconds. Raises ValueError for anything else,
    and where `classes` are wanted of a file without.
    """
    if source in PACKAGED:
        return packaged(source, "class" if classes else "all")
    path = Path(source)
    if path.suffix not in (SUFFIX, *PUBLISHED):
        raise ValueError(
            f"{source}: laws are in a {SUFFIX} file, which `fewstep stats DATA --gaussian` writes, "
            f"in a published PCA (.pt), or those of {', '.join(PACKAGED)}"
        )
    found = GaussianData.load(path) if path.suffix == SUFFIX else load_pca(path)
    if classes and found.by != "class":
        raise ValueError(
            f"{source} has no laws by class: `fewstep stats DATA --gaussian --per-class`"
        )
    return found


@lru_cache(maxsize=4)
def packaged(name: str, by: By) -> GaussianData:
    """Those of packaged images."""
    return gaussian_of(open_images(name), by)


def teleporting(
    asked: StartConfig | None, shape: tuple[int, ...], classes: int | None
) -> GaussianData | None:
    """The laws by which the noise of a model with samples of `shape` goes on; None: it does not.

    Raises ValueError for laws of other samples, or of other classes.
    """
    if asked is None:
        return None
    found = gaussian_from(asked.teleport, asked.classes)
    if found.shape != shape:
        raise ValueError(
            f"{asked.teleport} has laws of samples of shape {found.shape}, and the model's have "
            f"{shape}"
        )
    if found.by == "class" and classes != len(found.law.means):
        raise ValueError(
            f"{asked.teleport} has laws of {len(found.law.means)} classes, and the model has "
            f"{classes or 'none'}"
        )
    return found
