"""A set of real images as an extractor sees it: what samples are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .extractors import Extractor, Outputs
from .metrics import FrechetDistance, Moments
from .progress import Progress, silent
from .sources import ImageSet

# Facts that two files of one network may differ in.
INCIDENTAL = ("container",)
# How many features are kept beside the moments: as many as ADM's files have images.
MEMBERS = 10_000


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the features of real images, and some of the features themselves.

    `facts` are those of the extractor, with its name under "extractor": only features with the same
    facts may be compared. `spatial` are moments of its early map, for sFID; `members` [M, D] are
    features of M of the images, for kernel distances and neighbours. `origin` says which images.
    """

    facts: Mapping[str, str]
    features: Moments
    spatial: Moments | None = None
    members: Tensor | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def facts_of(extractor: Extractor) -> dict[str, str]:
    """All that makes features of an extractor comparable."""
    facts = {k: v for k, v in extractor.facts.items() if k not in INCIDENTAL}
    return {"extractor": extractor.name, **facts}


def check_comparable(statistics: Statistics, extractor: Extractor) -> None:
    """ValueError if features of `extractor` may not be compared with these statistics.

    A fact that the file of another program does not say is not held against it.
    """
    asked = facts_of(extractor)
    wrong = [
        f"{name}: {value!r} there, {asked[name]!r} here"
        for name, value in statistics.facts.items()
        if name in asked and asked[name] != value
    ]
    if wrong:
        raise ValueError(
            "the reference statistics were made in another way than the features of the samples, "
            f"so that no number would mean anything ({'; '.join(wrong)}): make them again with "
            "`fewstep stats`, or take the same extractor"
        )
    width = len(statistics.features.mean)
    if statistics.members is not None and statistics.members.shape[1] != width:
        raise ValueError(f"the statistics have {width} means and other features: damaged?")


def passes(
    images: ImageSet, extractor: Extractor, batch_size: int = 100, progress: Progress = silent
) -> Iterator[Outputs]:
    """What an extractor makes of a set, batch by batch.

    Raises ArithmeticError naming the first image whose features are not finite.
    """
    done = 0
    for pixels in images.batches(batch_size):
        outputs = extractor(pixels)
        bad = ~outputs.features.isfinite().flatten(1).all(1)
        if bad.any():
            raise ArithmeticError(
                f"{extractor.name} gives features that are not finite for {int(bad.sum())} of "
                f"{len(bad)} images, first: number {done + int(bad.int().argmax())} of "
                f"{images.name}"
            )
        done += len(pixels)
        progress(done, images.count, f"{extractor.name}: {images.name}")
        yield outputs


def spread(count: int, total: int) -> Tensor:
    """Positions of `count` of `total` things, evenly spread; of all if there are fewer."""
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


def collect_statistics(
    images: ImageSet,
    extractor: Extractor,
    *,
    members: int = MEMBERS,
    batch_size: int = 100,
    progress: Progress = silent,
) -> Statistics:
    """Run `extractor` over all images; keep the features of `members` of them, evenly spread.

    Raises ValueError for fewer than 2 images, and as `passes` does.
    """
    if images.count < 2:
        raise ValueError(f"{images.name} has {images.count} images; statistics need at least 2")
    sums: dict[str, FrechetDistance] = {}
    chosen = torch.zeros(images.count, dtype=torch.bool)
    chosen[spread(members, images.count)] = True
    kept: list[Tensor] = []
    masks = iter(chosen.split(batch_size))
    for outputs in passes(images, extractor, batch_size, progress):
        for kind, values in (("features", outputs.features), ("spatial", outputs.spatial)):
            if values is None:
                continue
            if kind not in sums:
                sums[kind] = sums_about(values.double().mean(0))
            sums[kind].update(values)
        kept.append(outputs.features.cpu()[next(masks)])
    found = {kind: on_host(each.moments()) for kind, each in sums.items()}
    size = list(images.read([0]).shape[1:])
    return Statistics(
        facts_of(extractor),
        found["features"],
        found.get("spatial"),
        torch.cat(kept) if members else None,
        {"images": images.name, "count": images.count, "size": size, "lossy": images.lossy},
    )


def sums_about(mean: Tensor) -> FrechetDistance:
    """Sums of features about the mean [D] of some, which is near enough to lose no digits."""
    nowhere = Moments(None, mean, torch.zeros(len(mean), len(mean)).to(mean))
    return FrechetDistance(nowhere, blocks=1).to(mean.device)


def on_host(moments: Moments) -> Moments:
    """The same on the CPU."""
    return Moments(moments.n, moments.mean.cpu(), moments.cov.cpu())
