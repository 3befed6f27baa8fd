"""Scoring images that are there already: a folder, an archive, an array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch

from ..storage import digest
from .extractors import Extractor, Outputs
from .formats import ACTIVATIONS, load_statistics, save_statistics
from .metrics import Estimate
from .progress import Progress, silent
from .score import check_measures, instruments, score
from .settings import ModelConfig
from .sources import ImageSet, open_images
from .statistics import MEMBERS, Statistics, collect_statistics, facts_of, passes


def outputs_of(
    images: ImageSet,
    extractor: Extractor,
    batch_size: int = 100,
    progress: Progress = silent,
) -> Outputs:
    """All outputs of an extractor over a set, on the CPU; errors as of `passes`."""
    found = (
        [None if part is None else part.cpu() for part in outputs]
        for outputs in passes(images, extractor, batch_size, progress)
    )
    columns = zip(*found, strict=True)
    return Outputs._make(None if column[0] is None else torch.cat(column) for column in columns)


def first_outputs(images: ImageSet, extractor: Extractor) -> Outputs:
    """Those of two images, or of one: what they are like is known before the rest is read."""
    return extractor(images.read(range(min(2, images.count))))


def reference_statistics(
    source: str,
    extractor: Extractor,
    *,
    size: int | None = None,
    convention: str | None = None,
    members: int = MEMBERS,
    batch_size: int = 100,
    progress: Progress = silent,
) -> Statistics:
    """Statistics from a file of them, or made from images; see `is_statistics`.

    Raises ValueError for a `convention` of images: their resize is that of the extractor.
    """
    if is_statistics(Path(source)):
        return load_statistics(Path(source), extractor.name, convention)
    if convention is not None:
        raise ValueError(
            f"convention {convention!r} is about files of statistics, and {source} are images: "
            "the extractor resizes them (--option resize=..)"
        )
    images = open_images(source, size)
    return collect_statistics(
        images, extractor, members=members, batch_size=batch_size, progress=progress
    )


def statistics_of(
    asked: ModelConfig, built: Extractor, folder: Path, batch_size: int, progress: Progress
) -> Statistics:
    """The statistics of the data of a model: the file that it names, or made from its images."""
    files = asked.statistics
    file = files.get(built.name) if isinstance(files, dict) else files
    if file is not None:
        return load_statistics(file, built.name, asked.convention)
    if asked.data is None:
        raise ValueError(
            f"model {asked.name}: say what its samples are compared with, as `data: IMAGES` or "
            f"`statistics: {{{built.name}: FILE}}`; errors and times need neither"
        )
    images = open_images(asked.data)
    mark = digest(images.identity, facts_of(built))
    path = folder / "statistics" / f"{built.name}-{mark}.npz"
    if not path.exists():
        made = collect_statistics(images, built, batch_size=batch_size, progress=progress)
        save_statistics(made, path)
    return load_statistics(path, built.name)


def with_members(
    statistics: Statistics,
    source: str,
    extractor: Extractor,
    batch_size: int = 100,
    progress: Progress = silent,
) -> Statistics:
    """The statistics with features of the images beside them, as ADM's files hold 10,000.

    As they are if they have features, or the file has no images.
    """
    path = Path(source)
    if statistics.members is not None or "arr_0" not in entries(path):
        return statistics
    found = outputs_of(open_images(source), extractor, batch_size, progress)
    return replace(statistics, members=found.features)


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics, or activations, rather than images."""
    return path.suffix == ".pkl" or bool(entries(path) & {"mu", "sigma", *ACTIVATIONS})


def entries(path: Path) -> set[str]:
    """The names in an .npz file; none for other files, ValueError for a damaged one."""
    if path.suffix != ".npz" or not path.is_file():
        return set()
    try:
        with ZipFile(path) as file:
            return {Path(name).stem for name in file.namelist()}
    except BadZipFile as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def score_images(
    images: ImageSet,
    statistics: Statistics,
    extractor: Extractor,
    metrics: Iterable[str],
    *,
    batch_size: int = 100,
    shuffle: bool = True,
    progress: Progress = silent,
) -> dict[str, Estimate]:
    """Every value of `metrics` of a set of images against `statistics`; `shuffle` as in `score`.

    What cannot be had is found out on the first images: see `check_measures`.
    """
    names = tuple(metrics)
    like = first_outputs(images, extractor)
    check_measures(names, extractor, statistics, like)
    outputs = outputs_of(images, extractor, batch_size, progress)
    built = instruments(names, statistics, like, extractor.device or "cpu")
    return score(outputs, built, shuffle=shuffle, progress=progress)
