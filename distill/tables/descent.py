"""A table trained by gradients through the whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...samplers import Denoiser, sample
from ...samplers.denoiser import checkpointed
from ...samplers.fit import Trajectories
from ...training import Task, share, shuffled
from .learned import LearnedTable
from .objective import SQUARES, Objective, ends


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noises z [N, ...] of unit variance and where the teacher ends, with denoisers of any part.

    `denoiser(index)` is that of the samples `index`, int64 [B].
    """

    z: Tensor
    ends: Tensor
    denoiser: Callable[[Tensor], Denoiser]


def table_task(
    module: LearnedTable,
    pairs: Pairs,
    held_out: Sequence[Trajectories],
    objective: Objective,
    *,
    batch_size: int,
    seed: int = 0,
    ball: float = 0.0,
    gradient_checkpointing: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Task:
    """The training of a table for its last state, by descent; validated on held-out noises.

    Where Gauss-Newton (`refine`) needs few samples and hundreds of runs per step, this takes a run
    and its gradient for a small batch: for objectives that are far from squares, many numbers, or
    networks on many devices.

    `ball` > 0 trains on noises moved within a ball of radius ball sqrt(D) about z, one step against
    the gradient where that lowers a sample's cost (in the manner of Tong et al. 2025, "Learning to
    Discretize Denoising Diffusion ODEs", but beginning anew at every visit): errors that another
    noise would not make count less. It makes the distance to the teacher worse, and is for
    distances between sets. Noises of the validation are never moved.

    `gradient_checkpointing` keeps the activations of one network call at a time.
    """
    if batch_size > len(pairs.z):
        raise ValueError(f"a batch of {batch_size} needs as many pairs, there are {len(pairs.z)}")

    def loss(module: nn.Module, step: int, part: int, parts: int) -> Tensor:
        index = shuffled(len(pairs.z), batch_size, seed, step)[share(batch_size, part, parts)]
        run = module()
        found = pairs.denoiser(index)
        denoiser = checkpointed(found) if gradient_checkpointing else found
        device = run.start.device
        z, targets = (each[index.to(each.device)].to(device) for each in (pairs.z, pairs.ends))

        def costs(z: Tensor) -> Tensor:
            x = sample(denoiser, run.table, z * run.start.to(z), time_map=run.time_map)
            return objective.costs(x, targets)

        return costs(relaxed(z, costs, ball)).mean()

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, LearnedTable)
        found = ends(held_out, module.table())
        return {
            "held_out_loss": objective.compare(held_out, found).loss,
            "held_out_rmse": SQUARES.compare(held_out, found).loss ** 0.5,
        }

    return Task(module, loss, validate, facts=facts or {})


def relaxed(z: Tensor, costs: Callable[[Tensor], Tensor], ball: float) -> Tensor:
    """Noises within `ball` sqrt(D) of z [B, ...] that cost no more; z itself for a ball of 0."""
    if ball == 0:
        return z
    moving = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        here = costs(moving)
        (grad,) = torch.autograd.grad(here.sum(), moving)
    flat = grad.flatten(1)
    length = flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    # A hair less, so that rounding stays inside.
    radius = ball * flat.shape[1] ** 0.5 * (1 - 1e-6)
    moved = z - (radius * flat / length).reshape(z.shape)
    with torch.no_grad():
        better = costs(moved) < here
    return torch.where(better.reshape(-1, *(1,) * (z.ndim - 1)), moved, z).detach()
