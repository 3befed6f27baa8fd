"""The samples of a model that a table learns from, by the teacher; made once and kept."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ... import samplers
from ...eval.models import Draw, NetworkModel, label_rule
from ...eval.progress import Progress, silent
from ...samplers import Denoiser, Tableau
from ...samplers.blend import lagrange
from ...samplers.fit import Trajectories, teach
from ...schedules import grid
from ...storage import digest, read_arrays, write_arrays
from .config import TableConfig
from .descent import Pairs
from .teacher import Teacher


def taught(
    config: TableConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> Teacher:
    """The teacher's trajectories: those for the search of nodes, the rest to learn from, others.

    Kept in `folder`, a file per batch: a call that was stopped goes on there.
    """
    solver = samplers.build(
        config.solver, grid(model.schedule, config.teacher_steps, config.spacing)
    )
    total = config.samples + config.held_out
    search = min(config.search, config.samples)
    batches: list[Trajectories] = []
    for first, last in ((0, search), (search, config.samples), (config.samples, total)):
        for rows, scale in divided(range(first, last), config.scales, config.batch_size):
            path = folder / f"{rows.start:06d}.npz"
            batches.append(kept(config, model, solver, rows, scale, path))
            progress(rows.stop, total, "the teacher's samples")
    return Teacher(solver.grid, tuple(batches))


def divided(rows: range, scales: Sequence[float], size: int) -> list[tuple[range, float]]:
    """The rows in batches of at most `size`, each of one scale, with all scales in turn."""
    if not rows:
        return []
    count = -(-len(rows) // size)
    # As many as there are scales, or a multiple, so that none gets more than others.
    count = -(-count // len(scales)) * len(scales)
    ends = [rows.start + len(rows) * k // count for k in range(count + 1)]
    parts = [range(a, b) for a, b in itertools.pairwise(ends) if b > a]
    return [(part, scales[k % len(scales)]) for k, part in enumerate(parts)]


def denoiser_of(
    config: TableConfig, model: NetworkModel, rows: Sequence[int], scale: float
) -> Denoiser:
    """The denoiser of some of the samples."""
    seeds = [config.first_seed + row for row in rows]
    labels = label_rule(config.labels, model.classes, model.shape, seeds, "cpu")
    return model.denoiser_of(Draw(seeds, labels, scale))


@torch.no_grad()
def kept(
    config: TableConfig,
    model: NetworkModel,
    solver: Tableau,
    rows: range,
    scale: float,
    path: Path,
) -> Trajectories:
    """One batch of trajectories, from its file if that is there."""
    denoiser, shares = denoiser_of(config, model, rows, scale), lagrange(config.knots, scale)
    seeds = range(config.first_seed + rows.start, config.first_seed + rows.stop)
    facts = (config.labels, scale, seeds.start, seeds.stop, str(model.device))
    key = digest(*facts, model.fingerprint, solver.to_dict())
    found = read_arrays(path, key)
    if found is not None:
        z, *states = (torch.from_numpy(each).to(model.device) for each in found["states"])
        return Trajectories(denoiser, z, states, shares)
    x = samplers.noise(solver.grid, model.shape, seeds, device=model.device)
    batch = teach(solver, denoiser, x / float(solver.grid.sigma[0]))
    write_arrays(path, key, {"states": torch.stack([batch.z, *batch.states]).cpu().numpy()})
    return replace(batch, shares=shares)


def pairs(config: TableConfig, model: NetworkModel, batches: Sequence[Trajectories]) -> Pairs:
    """Where the samples of these first batches begin and end."""

    def denoiser(index: Tensor) -> Denoiser:
        return denoiser_of(config, model, index.tolist(), config.guidance[0])

    z, ends = (
        torch.cat(each) for each in zip(*((b.z, b.states[-1]) for b in batches), strict=True)
    )
    return Pairs(z, ends, denoiser)


def first_batches(batches: Sequence[Trajectories], samples: int) -> int:
    """How many of the first batches have that many samples."""
    ends = itertools.accumulate(len(batch.z) for batch in batches)
    return 1 + next(i for i, end in enumerate(ends) if end >= samples)
