"""Gaussian teleportation: from pure noise past the first steps without asking the network.

Where there is much noise, what a network has learned of the data is little more than its mean and
covariance, and for a normal law the probability flow has a closed form (Wang and Vastola 2024, "The
Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models", eq. 11).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..schedules import Grid, Schedule, grid
from ..schedules.grid import Node
from .exact import Mixture
from .executor import StateHook, sample
from .registry import build


def gaussian_flow(
    data: Mixture, x: Tensor, source: Node, target: Node, component: Tensor | None = None
) -> Tensor:
    """The state at `target` on the probability flow of normal data through x at `source`.

    For x0 ~ N(mean, U diag(v) U^T + tail (I - U U^T)), with g(v) = sqrt((alpha'^2 v + sigma'^2) /
    (alpha^2 v + sigma^2)) and y = x - alpha mean:

        x' = alpha' mean + U diag(g(v) - g(tail)) U^T y + g(tail) y

    x is [B, ...] with D entries a sample; `component` [B] says which law of `data` each is of (the
    first one by default). Computed in float64, returned in the dtype of x; x itself where both
    nodes have the same levels. Raises ValueError for data of another number of dimensions.
    """
    if (source.alpha, source.sigma) == (target.alpha, target.sigma):
        return x
    dim, device = data.means.shape[1], x.device
    flat = x.reshape(len(x), -1).double()
    if flat.shape[1] != dim:
        raise ValueError(
            f"teleport: the data have {dim} dimensions, and samples of shape {tuple(x.shape[1:])} "
            f"have {flat.shape[1]}"
        )
    if component is None:
        component = torch.zeros(len(x), dtype=torch.int64)
    result = torch.empty_like(flat)
    for index in component.unique().tolist():
        rows = (component == index).to(device)
        mean, vectors, values, tail = (
            part[index].to(device) for part in (data.means, data.vectors, data.values, data.tail)
        )
        inside, outside = gain(values, source, target), gain(tail, source, target)
        gap = flat[rows] - source.alpha * mean
        moved = outside * gap + ((gap @ vectors) * (inside - outside)) @ vectors.T
        result[rows] = target.alpha * mean + moved
    return result.reshape(x.shape).to(x.dtype)


def gain(variance: Tensor, source: Node, target: Node) -> Tensor:
    """How much of a direction of this variance is left at the target."""
    after = target.alpha**2 * variance + target.sigma**2
    return (after / (source.alpha**2 * variance + source.sigma**2)).sqrt()


# A ratio that close to that of the beginning is that one.
CLOSE = 1e-9


def skip_time(schedule: Schedule, skip: float) -> float:
    """The time at which sigma / alpha is `skip`: the `t_max` of a grid that begins there.

    `schedule.t_max` itself where its ratio is that, so that skipping nothing changes no bit; inf is
    pure noise. Raises ValueError for a ratio that the schedule does not have between its ends.
    """
    most, least = (float(schedule.nsr(t)) for t in (schedule.t_max, schedule.t_min))
    if skip == most or most * (1 - CLOSE) < skip < most * (1 + CLOSE):
        return schedule.t_max
    if not least < skip < most:
        raise ValueError(
            f"teleport: a run cannot begin where sigma / alpha is {skip:g}: {schedule!r} has "
            f"{least:.4g} to {most:.4g}"
        )
    return float(schedule.time(-math.log(skip)))


def beginning(schedule: Schedule) -> Grid:
    """A grid that begins at t_max, whose node 0 is where noise is drawn: the source."""
    return Grid.from_times(schedule, [schedule.t_max, schedule.t_zero])


def boost(factor: float) -> StateHook:
    """The `start` of boost-and-skip: noise of `factor` times the deviation of states there.

    For a grid that begins late (`grid(schedule, nfe, t_max=skip_time(..))`) and a stochastic
    solver: x = factor sqrt(alpha^2 + sigma^2) z. Along directions in which the data vary much the
    run remembers it, and ends in places where data are rare: on N(0, v), with alpha^2 + sigma^2 = 1
    and s = alpha^2 v + sigma^2, the exact reverse process ends with variance (alpha v factor / s)^2
    + v sigma^2 / s, and the probability flow with factor^2 v / s. Um, Kim and Ye 2025,
    "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation": factors 2.5 to 4, 3
    of 250 steps.
    """

    def start(x: Tensor, node: Node) -> Tensor:
        return x * (factor * math.hypot(node.alpha, node.sigma) / node.sigma)

    return start


def teleport(
    data: Mixture, source: Node, labels: Tensor | None = None, steps: int = 50
) -> StateHook:
    """The `start` of `sample` that takes a state at `source` to the first node of the table.

    The table is built for what is left, such as `grid(schedule, nfe, t_max=..)`, and x is noise at
    `source`: node 0 of a grid that begins at t_max. `data` is a normal law, or one for each label,
    of which `labels` [B] choose: both closed forms (see `gaussian_flow`). Without labels a mixture
    of several goes along its own score, in `steps` steps of UniPC-3; the network is never asked.
    """

    def start(x: Tensor, node: Node) -> Tensor:
        if len(data.means) == 1 or labels is not None:
            return gaussian_flow(data, x, source, node, labels)
        if (source.alpha, source.sigma) == (node.alpha, node.sigma):
            return x
        if node.schedule is None:
            raise ValueError("teleport: a mixture needs a grid on a noise schedule to go along")
        between = grid(
            node.schedule, steps, "karras", end="min", t_max=source.time, t_min=node.time
        )
        return sample(data, build("unipc-3", between), x)

    return start
