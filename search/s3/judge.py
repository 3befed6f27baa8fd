"""What a schedule is worth: how far its samples are from real images, or from converged ones."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ... import samplers
from ...eval.evaluate import outputs_of, statistics_of
from ...eval.extractors import Extractor, extractor
from ...eval.images import quantise
from ...eval.metrics import Moments, frechet_distance, moments
from ...eval.metrics.kernel import kernel_sums, pair_sums, polynomial
from ...eval.models import Draw, Model, NetworkModel, in_batches, label_rule
from ...eval.progress import Progress, silent
from ...eval.score import members
from ...eval.sources import in_memory
from ...samplers import Tableau
from ...schedules import grid
from ...storage import digest, read_arrays, write_arrays
from ..population import population_images
from .archive import Verdict
from .config import SearchConfig


@dataclass(frozen=True, eq=False)
class Part:
    """A measure ready for use: how far images, or their features by `extractor`, are away."""

    name: str
    weight: float
    extractor: Extractor | None
    distance: Callable[[Tensor], float]


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores tables by the same noises for all; `key` changes with all that scores depend on."""

    model: Model
    draw: Draw
    parts: tuple[Part, ...]
    batch_size: int
    key: str

    def __call__(self, tables: Sequence[Tableau]) -> list[Verdict]:
        """The verdicts on tables, in their order; samples that are not finite score infinity.

        The tables of a network go side by side, see `population_images`; `seconds` are those of
        processors, the same for all.
        """
        clock = time.process_time()
        if isinstance(self.model, NetworkModel):
            images = population_images(self.model, tables, self.draw, self.batch_size).cpu()
        else:
            made = (in_batches(self.model, each, self.draw, self.batch_size) for each in tables)
            images = torch.stack(list(made))
        found = [self.numbers(each) for each in images]
        seconds = (time.process_time() - clock) / len(tables)
        return [
            Verdict(sum(p.weight * n[p.name] for p in self.parts), n, seconds)
            if n
            else Verdict(math.inf, {}, seconds)
            for n in found
        ]

    def numbers(self, images: Tensor) -> dict[str, float]:
        """All measures of the images of one table, by name; none if they are not finite."""
        if not images.isfinite().all():
            return {}
        features: dict[str, Tensor] = {}
        numbers = {}
        for part in self.parts:
            seen = images
            if part.extractor is not None:
                name = part.extractor.fingerprint
                if name not in features:
                    features[name] = features_of(part.extractor, images, self.batch_size)
                seen = features[name]
            numbers[part.name] = part.distance(seen)
        return numbers


def judge_of(
    config: SearchConfig,
    model: Model,
    folder: Path,
    progress: Progress = silent,
) -> Judge:
    """The judge of a search; converged samples and statistics of the data are kept in `folder`.

    Raises ValueError for measures, labels or guidance that the model has nothing for.
    """
    seeds = range(config.first_seed, config.first_seed + config.samples)
    labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
    if config.guidance != 1 and labels is None:
        raise ValueError(f"guidance {config.guidance:g}: {model.name} has no classes to guide")
    draw = Draw(seeds, labels, config.guidance)
    facts = [model.fingerprint, seeds.start, seeds.stop, config.labels, config.guidance]
    if any(each.converged for each in config.measures):
        nodes = grid(model.schedule, config.converged_steps, config.spacing)
        table = samplers.build(config.solver, nodes)
        facts.append(table.to_dict())
    key = digest(*facts)

    @cache
    def exact() -> Tensor:
        return converged(model, table, draw, config.batch_size, folder, key, progress)

    parts = []
    for measure in config.measures:
        facts.append(measure.model_dump(mode="json"))
        if measure.features is None:
            parts.append(Part(measure.kind, measure.weight, None, rmse_to(exact())))
            continue
        built = extractor(measure.features.id, model.device, **measure.features.options)
        if measure.beside == "reference":
            known = features_of(built, exact(), config.batch_size)
            there, every = moments(known), known
        else:
            real = statistics_of(config.model, built, folder, config.batch_size, progress)
            there = real.features
            every = members(real) if measure.kind == "kernel" else there.mean
            facts += [digest(each.numpy()) for each in (there.mean, there.cov, every)]
        facts.append(built.fingerprint)
        name = f"{measure.kind} ({built.name}, {measure.beside})"
        distance = frechet_to(there) if measure.kind == "frechet" else kernel_to(every)
        parts.append(Part(name, measure.weight, built, distance))
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("measures: one stands twice; give it once, with the weight of both")
    return Judge(model, draw, tuple(parts), config.batch_size, digest(*facts))


def converged(
    model: Model,
    table: Tableau,
    draw: Draw,
    batch_size: int,
    folder: Path,
    key: str,
    progress: Progress,
) -> Tensor:
    """The samples of a table, kept in `folder` batch by batch."""
    parts = []
    for first in range(0, len(draw.seeds), batch_size):
        name = f"{key}-{batch_size}-{first}"
        path = folder / "reference" / f"{name}.npz"
        found = read_arrays(path, name)
        if found is None:
            part = draw.part(slice(first, first + batch_size))
            found = {"images": in_batches(model, table, part, batch_size).numpy()}
            write_arrays(path, name, found)
            progress(first, len(draw.seeds), "converged samples")
        parts.append(torch.from_numpy(found["images"]))
    return torch.cat(parts)


def features_of(built: Extractor, images: Tensor, batch_size: int) -> Tensor:
    """Features of images in [-1, 1], rounded as files are, float32 [N, D] on the CPU."""
    return outputs_of(in_memory("samples", quantise(images)), built, batch_size).features


def rmse_to(exact: Tensor) -> Callable[[Tensor], float]:
    """The root mean square of the difference to these samples."""
    return lambda images: float((images.double() - exact.double()).square().mean().sqrt())


def frechet_to(there: Moments) -> Callable[[Tensor], float]:
    """The Frechet distance to these moments."""

    def distance(features: Tensor) -> float:
        with warnings.catch_warnings():
            # That few samples have a bias is the same for all that are compared.
            warnings.simplefilter("ignore", UserWarning)
            return frechet_distance(moments(features), there)

    return distance


def kernel_to(every: Tensor) -> Callable[[Tensor], float]:
    """The unbiased squared MMD of KID's kernel to these features, over all pairs."""
    real = every.double()
    within = pair_sums(polynomial, real)

    def distance(features: Tensor) -> float:
        one = torch.zeros(len(features), dtype=torch.int64)
        sums = kernel_sums(polynomial, features.double(), real, one, 1, within)
        return sums.mmd2(unbiased=True)

    return distance
