"""A model of a benchmark with all that its samples are measured by, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...storage import digest
from ..evaluate import statistics_of
from ..extractors import Extractor, Outputs, extractor
from ..extras import extras_of
from ..models import Model, configured, label_rule, pick_device
from ..processes import ALONE, Processes
from ..progress import Progress, silent
from ..score import check_measures, instruments
from ..settings import ModelConfig
from ..statistics import Statistics
from .config import BenchConfig
from .plan import panels, plan, reference_tables


@dataclass(frozen=True, eq=False)
class Contestant:
    """A loaded model, and by name of the extractor: the extractor, real images, and metrics."""

    name: str
    model: Model
    extractors: Mapping[str, Extractor]
    statistics: Mapping[str, Statistics]
    metrics: Mapping[str, Mapping[str, Any]]

    @property
    def key(self) -> str:
        """Digest of what the samples are compared with, and how."""
        return digest(*(self.reference_key(name) for name in sorted(self.statistics)), self.asked)

    def reference_key(self, name: str) -> str:
        """Digest of the statistics of one extractor."""
        known = self.statistics[name]
        parts = [known.features.mean, known.features.cov, known.members]
        parts += [] if known.spatial is None else [known.spatial.mean, known.spatial.cov]
        arrays = ("none" if part is None else part.numpy() for part in parts)
        return digest(dict(known.facts), known.features.n, *arrays)

    @property
    def asked(self) -> dict[str, list[str]]:
        """The metrics by extractor."""
        return {name: sorted(metrics) for name, metrics in sorted(self.metrics.items())}

    @property
    def device(self) -> torch.device:
        """Where it all is."""
        return self.model.device


def contestant(
    name: str,
    model: Model,
    pairs: list[tuple[Extractor, Statistics]],
    metrics: tuple[str, ...],
) -> Contestant:
    """Check that every metric can be had before the first sample is made, and build them."""
    names = [each.name for each, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two extractors are called {max(names, key=names.count)}: take one of them"
        )
    built = {}
    channels = 1 if model.shape[:1] == (1,) else 3
    for each, statistics in pairs:
        size = statistics.origin.get("size", [channels, 32, 32])
        probe: Outputs = each(torch.zeros(2, *size, dtype=torch.uint8))
        check_measures(metrics, each, statistics, probe)
        built[each.name] = instruments(metrics, statistics, probe, model.device)
    extractors = {each.name: each for each, _ in pairs}
    known = {each.name: statistics for each, statistics in pairs}
    return Contestant(name, model, extractors, known, built)


def prepare(
    config: BenchConfig,
    asked: ModelConfig,
    device: torch.device,
    folder: Path,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> Contestant:
    """Load a model and its extractors, and the statistics of its data, made once in `folder`.

    What is cheap to find wrong comes first: extractors, the model, what is to be done with it.
    """
    used = config.extractors if config.metrics else ()
    built = [extractor(each.id, device, **each.options) for each in used]
    model = configured(asked, device)
    check_plan(config, asked.name, model)
    if isinstance(asked.statistics, dict):
        names = [each.name for each in built]
        unknown = [name for name in asked.statistics if name not in names]
        if unknown:
            raise ValueError(
                f"model {asked.name}: statistics of {unknown[0]}, which is no extractor of this "
                f"run; there is {', '.join(names) or 'none'}"
            )
    pairs = []
    for each in built:
        if processes.first:
            statistics_of(asked, each, folder, config.batch_size, progress)
        processes.wait()
        pairs.append((each, statistics_of(asked, each, folder, config.batch_size, progress)))
    return contestant(asked.name, model, pairs, config.metrics)


def check_plan(config: BenchConfig, name: str, model: Model) -> None:
    """ValueError for what a model cannot do: solvers, spacings, labels, guidance, devices."""
    pick_device(config.noise_device)
    label_rule(config.labels, model.classes, model.shape, range(2), "cpu")
    for panel in (each for each in panels(config) if each.model == name):
        for cell in plan(config, model.schedule, panel, 0):
            extras_of(cell.solver, cell.planned, model)
        if panel.guidance != 1 and model.classes is None:
            raise ValueError(f"guidance {panel.guidance:g}: {name} has no classes, nor prompts")
    if config.reference is not None:
        reference_tables(config.reference, config.end, model.schedule)
