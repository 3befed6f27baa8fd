"""Samples of a better run of the same model: what short runs are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from .. import samplers
from ..eval.models import Draw, LabelRule, NetworkModel, label_rule
from ..samplers import Tableau, sample
from ..samplers.fit import Trajectories, refined, teach
from ..schedules import Grid


class Lessons(Protocol):
    """The settings that say what samples are looked at, and what they are judged by."""

    @property
    def teacher(self) -> str: ...  # noqa: D102
    @property
    def substeps(self) -> int: ...  # noqa: D102
    @property
    def samples(self) -> int: ...  # noqa: D102
    @property
    def held_out(self) -> int: ...  # noqa: D102
    @property
    def first_seed(self) -> int: ...  # noqa: D102
    @property
    def labels(self) -> LabelRule: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102


def lessons_of(
    asked: Lessons, model: NetworkModel, nodes: Grid, guidance: float = 1.0
) -> tuple[list[Trajectories], list[Trajectories]]:
    """The trajectories to search with and the held-out ones, with the states at nodes 1 to N.

    They are those of `teacher` with `substeps` steps in place of one, from the beginning of the
    schedule on, of `samples` seeds from `first_seed` on, and of `held_out` more. Raises ValueError
    for a teacher that draws noise, or has stages.
    """
    ends = np.cumsum([0, asked.samples, asked.held_out]) + asked.first_seed
    search, held_out = (
        trajectories(asked, model, nodes, range(a, b), guidance) for a, b in pairwise(ends.tolist())
    )
    return search, held_out


def trajectories(
    asked: Lessons, model: NetworkModel, nodes: Grid, seeds: range, guidance: float
) -> list[Trajectories]:
    """Those of some seeds, in batches."""
    fine = samplers.build(asked.teacher, from_the_beginning(nodes, asked.substeps))
    before = fine.nfe - nodes.nfe * asked.substeps
    found = []
    for first in range(0, len(seeds), asked.batch_size):
        some = seeds[first : first + asked.batch_size]
        labels = label_rule(asked.labels, model.classes, model.shape, some, "cpu")
        denoiser = model.denoiser_of(Draw(some, labels, guidance))
        z = samplers.noise(nodes, model.shape, some, device=model.device) / float(nodes.sigma[0])
        course = teach(fine, denoiser, z)
        states = course.states[before + asked.substeps - 1 :: asked.substeps]
        found.append(Trajectories(denoiser, z, states))
    return found


def from_the_beginning(nodes: Grid, substeps: int) -> Grid:
    """The grid with every step cut into `substeps`, and as many before it if it begins late."""
    fine, law = refined(nodes, substeps), nodes.require_schedule()
    if nodes.lam[0] <= law.lam(law.t_max):
        return fine
    early = np.linspace(law.t_max, nodes.time[0], substeps, endpoint=False)
    return Grid.from_times(law, [*early, *fine.time])


@torch.no_grad()
def end_error(table: Tableau, batches: Sequence[Trajectories]) -> float:
    """The root mean square between a table's last states and the teacher's."""
    squares = [
        (sample(b.denoiser, table, b.start(table.grid)) - b.states[-1]).double().square().mean()
        for b in batches
    ]
    count = sum(len(batch.z) for batch in batches)
    total = sum(float(s) * len(b.z) for s, b in zip(squares, batches, strict=True))
    return (total / count) ** 0.5
