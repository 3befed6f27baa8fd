"""Towards what is rare: how badly a sample is reconstructed from noise says how rare it is.

With little of it left to see, a denoiser completes a sample to something usual; of a rare one the
completion is far off (Um et al. 2024, "Don't Play Favorites: Minority Guidance for Diffusion
Models").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...schedules import Schedule
from ...schedules.grid import Grid, Node
from ..recall import Denoiser
from ..streams import salted, standard_normal
from .free import Scale, per_sample, scale_at
from .gradients import gain
from .guided import Ask, Guided

# Between samples, [B]: squared error, or one of features.
Distance = Callable[[Tensor, Tensor], Tensor]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """The sum of squares over all entries of each sample, [B]."""
    return (a - b).square().flatten(1).sum(1)


def node_at(schedule: Schedule, time: float) -> Node:
    """The noise level of a time, as denoisers see it."""
    return Grid.from_times(schedule, [time, schedule.t_zero]).nodes[0]


def minority_score(
    denoiser: Denoiser,
    x0: Tensor,
    node: Node,
    seeds: Sequence[int],
    *,
    draws: int = 5,
    distance: Distance = squared,
) -> Tensor:
    """How rare samples are: E_z d(x0, denoiser(alpha x0 + sigma z)) at a noise level, [B].

    The mean of `draws` noises of each sample's stream. For squared error it is (sigma / alpha)^2
    times the mean square error of eps, and for normal data a closed form. `node` is one where
    samples are ambiguous (`node_at(schedule, 0.6 t_max)`, as published): near the data all are
    reconstructed, near noise none is.
    """
    streams = salted(seeds, "minority")
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for draw in range(draws):
        z = standard_normal(streams, draw, x0)
        with torch.no_grad():
            found = denoiser(node.alpha * x0 + node.sigma * z, node)
        total += distance(x0, found).double()
    return total / draws


def self_guided(
    denoiser: Denoiser,
    node: Node,
    scale: Scale,
    seeds: Sequence[int],
    *,
    every: int = 1,
    distance: Distance = squared,
) -> Denoiser:
    """x0 + scale (sigma^2 / alpha) g / max |g|, g the gradient of what `minority_score` measures.

        g = grad_x d(x0(x), stop(denoiser(alpha' x0(x) + sigma' z)))

    at the level alpha', sigma' of `node`, with one noise z of each sample's stream an evaluation;
    the gradient goes through x0(x), and not through the second evaluation. At every `every`-th node
    (Um and Ye 2024, "Self-Guided Generation of Minority Samples Using Diffusion Models", eq. 8 and
    9; stages inside steps are nodes, too): two evaluations there, one of them with a gradient.
    `seeds` are of a run from its beginning, where its state has no streams for denoisers yet;
    streams stay with the samples. ValueError unless `every` is at least 1.
    """
    if every < 1:
        raise ValueError(f"self_guided: every is 1 or more, not {every}")

    def rule(ask: Ask) -> Tensor:
        w = scale_at(ask, scale)
        if w == 0 or ask.node.index % every:
            return ask(denoiser)
        streams = ask.streams(seeds, "self-guided")
        with torch.enable_grad():
            x = ask.x.detach().requires_grad_()
            x0 = ask(denoiser, x)
            z = standard_normal(streams, ask.node.index, x0.detach())
            with torch.no_grad():
                again = denoiser(node.alpha * x0 + node.sigma * z, node)
            (slope,) = torch.autograd.grad(distance(x0, again).sum(), x)
        largest = per_sample(slope.flatten(1).abs().amax(1), slope).clamp_min(1e-30)
        return x0.detach() + w * gain(ask) * slope / largest

    return Guided(rule)
