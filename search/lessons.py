"""Samples of a better run of the same model: what short runs are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .. import samplers
from ..eval.models import Draw, LabelRule, NetworkModel, label_rule
from ..samplers import Tableau, sample
from ..samplers.fit import Trajectories, refined, teach
from ..schedules import Grid


def taught(
    model: NetworkModel,
    nodes: Grid,
    seeds: range,
    *,
    teacher: str,
    substeps: int,
    guidance: float = 1.0,
    labels: LabelRule = "balanced",
    batch_size: int = 64,
) -> list[Trajectories]:
    """The trajectories of `seeds` in batches, with the states at nodes 1 to N.

    They are those of `teacher` with `substeps` steps in place of one, from the beginning of the
    schedule on. Raises ValueError for a teacher that draws noise, or has stages.
    """
    fine = samplers.build(teacher, from_the_beginning(nodes, substeps))
    before = fine.nfe - nodes.nfe * substeps
    found = []
    for first in range(0, len(seeds), batch_size):
        some = seeds[first : first + batch_size]
        of_each = label_rule(labels, model.classes, model.shape, some, "cpu")
        denoiser = model.denoiser_of(Draw(some, of_each, guidance))
        z = samplers.noise(nodes, model.shape, some, device=model.device) / float(nodes.sigma[0])
        course = teach(fine, denoiser, z)
        states = course.states[before + substeps - 1 :: substeps]
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
