"""From features to numbers: every measure of a set of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .extractors import Extractor, Outputs
from .metrics import (
    Estimate,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Moments,
    Neighbours,
    Rarity,
    cmmd,
    jackknife,
)
from .metrics.blocks import kept
from .progress import Progress, silent
from .statistics import Statistics, check_comparable

# Standard errors come from that many blocks.
BLOCKS = 20
SHUFFLE = 2020


@dataclass(frozen=True)
class Measure:
    """One metric: which output of the extractor it takes, what of the reference, how it is made.

    `known` raises ValueError where the statistics do not hold what it takes of them; `make` gets
    that and the outputs of any image. `values` are the names of what it gives, and `titles` what
    they are called for the 2015 Inception, and for other extractors with their name behind. One
    that is `biased` by the number of samples is better known without its bias of first order.
    """

    output: str
    known: Callable[[Statistics], Any]
    make: Callable[..., Any]
    values: tuple[str, ...]
    titles: Mapping[str, tuple[str, str]]
    lower_is_better: bool
    biased: bool = False
    scale: float = 1.0


def members(statistics: Statistics) -> Tensor:
    """The real features themselves; ValueError where a file has moments only."""
    if statistics.members is None:
        raise ValueError(
            "the reference statistics hold moments only, and no features for kernel distances and "
            "neighbours: make them with `fewstep stats IMAGES`, or leave these metrics out"
        )
    return statistics.members


def spatial(statistics: Statistics) -> Moments:
    """The moments of the early map; ValueError where there are none."""
    if statistics.spatial is None:
        raise ValueError("the reference statistics hold no spatial moments, which sFID needs")
    return statistics.spatial


# One process scores, while others wait elsewhere: there is nothing to exchange.
MADE: dict[str, Any] = {"blocks": BLOCKS, "sync_on_compute": False}


MEASURES: dict[str, Measure] = {
    "frechet": Measure(
        "features",
        lambda statistics: statistics.features,
        lambda real, _: FrechetDistance(real, **MADE),
        ("frechet",),
        {"frechet": ("FID", "Frechet distance")},
        lower_is_better=True,
        biased=True,
    ),
    "kernel": Measure(
        "features",
        members,
        lambda real, _: KernelDistance(real, **MADE),
        ("kernel",),
        {"kernel": ("KID x 1000", "kernel distance x 1000")},
        lower_is_better=True,
        scale=1000.0,
    ),
    "score": Measure(
        "logits",
        lambda statistics: None,
        lambda real, outputs: InceptionScore(outputs.logits.shape[1], **MADE),
        ("score",),
        {"score": ("Inception score", "Inception score")},
        lower_is_better=False,
    ),
    "neighbours": Measure(
        "features",
        members,
        lambda real, _: Neighbours(real, **MADE),
        ("precision", "recall", "density", "coverage"),
        {name: (name, name) for name in ("precision", "recall", "density", "coverage")},
        lower_is_better=False,
    ),
    "rarity": Measure(
        "features",
        members,
        lambda real, _: Rarity(real, **MADE),
        ("neighbour_distance", "outlier_factor", "rarity"),
        {
            "neighbour_distance": ("distance to 5 neighbours", "distance to 5 neighbours"),
            "outlier_factor": ("local outlier factor", "local outlier factor"),
            "rarity": ("rarity score", "rarity score"),
        },
        lower_is_better=False,
    ),
    "spatial": Measure(
        "spatial",
        spatial,
        lambda real, _: FrechetDistance(real, **MADE),
        ("spatial",),
        {"spatial": ("sFID", "spatial Frechet distance")},
        lower_is_better=True,
        biased=True,
    ),
    "cmmd": Measure(
        "features",
        members,
        lambda real, _: cmmd(real, **MADE),
        ("cmmd",),
        {"cmmd": ("CMMD", "CMMD")},
        lower_is_better=True,
    ),
}
# The only features that an FID is made of.
INCEPTION = "inception"


def measure_of(value: str) -> Measure:
    """The metric that gives a value."""
    return next(each for each in MEASURES.values() if value in each.values)


def title(value: str, extractor: str) -> str:
    """What a value is called: FID and its kin for the 2015 Inception only."""
    genuine, other = measure_of(value).titles[value]
    return genuine if extractor == INCEPTION else f"{other} ({extractor} features)"


def check_metrics(names: Iterable[str], extractor: Extractor, outputs: Outputs) -> None:
    """ValueError if a metric is unknown, or not to be had with this extractor.

    `outputs` are those of any image.
    """
    for name in names:
        if name not in MEASURES:
            raise ValueError(f"unknown metric {name!r}; choose from {', '.join(MEASURES)}")
        needed = MEASURES[name].output
        if getattr(outputs, needed) is None:
            raise ValueError(f"{name} needs {needed}, which {extractor.name} does not have")
        if name == "cmmd" and extractor.facts.get("normalised") != "yes":
            raise ValueError(
                f"cmmd is defined on embeddings of unit length (clip), not {extractor.name}"
            )


def check_measures(
    names: Iterable[str], extractor: Extractor, statistics: Statistics, outputs: Outputs
) -> None:
    """ValueError if a metric is not to be had with this extractor and these statistics.

    `outputs` are those of any image: what is wrong is to be known before the first sample is made.
    """
    names = tuple(names)
    check_metrics(names, extractor, outputs)
    check_comparable(statistics, extractor)
    found, known = outputs.features.shape[1], len(statistics.features.mean)
    if found != known:
        raise ValueError(
            f"{extractor.name} has {found} features, the reference statistics are of {known}"
        )
    for name in names:
        MEASURES[name].known(statistics)


def instruments(
    names: Iterable[str], statistics: Statistics, outputs: Outputs, device: torch.device | str
) -> dict[str, Any]:
    """The metrics `names` against these statistics, for samples with such outputs."""
    chosen = {name: MEASURES[name] for name in names}
    return {n: m.make(m.known(statistics), outputs).to(device) for n, m in chosen.items()}


def takes_members(names: Iterable[str]) -> bool:
    """Whether one of the metrics takes features of real images, and not their moments."""
    return any(MEASURES[name].known is members for name in names)


def score(
    outputs: Outputs,
    metrics: Mapping[str, Any],
    *,
    shuffle: bool = True,
    progress: Progress = silent,
) -> dict[str, Estimate]:
    """Every value of `metrics` (see `instruments`) of samples with these `outputs` [N, ..].

    The samples are shuffled with a fixed seed and cut into 20 blocks, so that a set that is sorted
    by class has blocks like any other, and the same samples are in the same block for every sampler
    that was given the same seeds. Without `shuffle` the blocks are consecutive: the Inception score
    is then that of ADM's evaluator for its 50,000 samples (ten chunks of 5,000), and the standard
    errors of a sorted set mean nothing. Raises ArithmeticError for a value that is not finite.
    """
    order, cuts = in_blocks(len(outputs.features), shuffle)
    found: dict[str, Estimate] = {}
    for done, (name, metric) in enumerate(metrics.items()):
        progress(done, len(metrics), name)
        measure = MEASURES[name]
        metric.reset()
        for rows in order.tensor_split(cuts):
            metric.update(getattr(outputs, measure.output)[rows].to(metric.device))
        values = metric.estimate()
        many = values if isinstance(values, dict) else {measure.values[0]: values}
        found |= {key: scaled(value, measure.scale) for key, value in many.items()}
        metric.reset()
    lost = [name for name, each in found.items() if not math.isfinite(each.value)]
    if lost:
        raise ArithmeticError(f"{', '.join(lost)} overflowed: the features are too large")
    return found


def in_blocks(count: int, shuffle: bool = True) -> tuple[Tensor, list[int]]:
    """The order of `count` samples, and where it is cut into blocks."""
    # Seed and cuts of torch-fidelity.
    order = np.random.RandomState(SHUFFLE).permutation(count) if shuffle else np.arange(count)
    return torch.from_numpy(order), [i * count // BLOCKS for i in range(1, BLOCKS)]


def root_mean(squares: Tensor) -> Estimate:
    """sqrt(mean) of one number per sample [N], with the same blocks."""
    order, cuts = in_blocks(len(squares))
    parts = squares.double().cpu()[order].tensor_split(cuts)
    sums = torch.stack([part.sum() for part in parts])
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)

    def value(without: int | None) -> float:
        weight = kept(BLOCKS, without, sums)
        return float(torch.sqrt(weight @ sums / (weight @ sizes)))

    return jackknife(value, sizes.numpy())


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The same in other units."""
    return Estimate(estimate.value * factor, estimate.replicates * factor, estimate.sizes)
