"""GITS: the grid whose Euler steps leave the trajectories of a better sampler least."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...samplers import Denoiser, Tableau
from ...samplers.fit import teach
from ...schedules.base import Float
from ...schedules.grid import Node

Measure = Literal["deviation", "distance"]
# Published for solvers of images, and the teacher's.
GROWTH = 1.15
TEACHER = "ipndm-4"


@torch.no_grad()
def trajectory_costs(
    denoiser: Denoiser, teacher: Tableau, x: Tensor, measure: Measure = "deviation"
) -> Float:
    """What an Euler step from any node of a trajectory to any later one costs: [T + 1, T + 1].

    In y = x / alpha = x0 + nsr eps the step from node i to j is DDIM's,

        y'_j = r y_i + (1 - r) m_i,   r = nsr_j / nsr_i,   m_i = denoiser(x_i, node i).

    "distance" is its error |y'_j - y_j|, a mean over the samples x [B, ..] at node 0. "deviation"
    compares how far both are from the chord, the line from the start of the trajectory to its end:
    d(y'_j) - d(y_j), which may be negative. Trajectories leave the chord and come back in much the
    same way whatever the sample is, and that is what a few dozens of them tell.

    Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", with the cost
    of their code; there the path is weighed by `GROWTH` per step (see `shortest`), because errors
    of late steps are what no later step mends. Their teacher is iPNDM on 61 nodes of 256 samples.
    Raises ValueError for a teacher with stages in its steps, or that draws noise.
    """
    outputs: list[Tensor] = []

    def recorded(x: Tensor, node: Node) -> Tensor:
        outputs.append(denoiser(x, node))
        return outputs[-1]

    course = teach(teacher, recorded, x / float(teacher.grid.sigma[0]))
    states = [x, *course.states]
    return (deviations if measure == "deviation" else distances)(teacher, states, outputs)


def distances(teacher: Tableau, states: list[Tensor], outputs: list[Tensor]) -> Float:
    """The mean distances of Euler's steps to the trajectory."""
    grid = teacher.grid
    cost = np.zeros((grid.nfe + 1, grid.nfe + 1))
    for i, output in enumerate(outputs):
        carry = grid.sigma[i + 1 :] / grid.sigma[i]
        for j, c in enumerate(carry.tolist(), i + 1):
            alpha, ahead = float(grid.alpha[j]), float(grid.alpha[j] - grid.alpha[i] * c)
            gap = c * states[i].double() + ahead * output.double() - states[j].double()
            cost[i, j] = float(norm(gap).mean()) / alpha
    return cost


def deviations(teacher: Tableau, states: list[Tensor], outputs: list[Tensor]) -> Float:
    """How much farther from the chord Euler's steps end than the trajectory is, in the mean.

    What of a point y is orthogonal to the chord, p(y), is affine in it, so that that of a step is
    r p(y_i) + (1 - r) p(m_i), and three numbers of a node tell of all steps from there.
    """
    grid = teacher.grid
    end = states[-1].double() / float(grid.alpha[-1])
    # Its direction times alpha_0, which is finite from pure noise, too.
    chord = states[0].double() - float(grid.alpha[0]) * end
    chord = (chord / norm(chord).reshape(-1, *[1] * (end.ndim - 1))).flatten(1)

    def aside(y: Tensor) -> Tensor:
        gap = (y - end).flatten(1)
        return gap - (gap * chord).sum(1, keepdim=True) * chord

    # The chord begins where the trajectory does.
    own = [torch.zeros_like(chord)]
    own += [aside(y.double() / float(a)) for y, a in zip(states[1:], grid.alpha[1:], strict=True)]
    cost = np.zeros((grid.nfe + 1, grid.nfe + 1))
    there = np.array([float(norm(each).mean()) for each in own])
    for i, output in enumerate(outputs):
        share = torch.from_numpy(grid.nsr[i + 1 :] / grid.nsr[i]).to(end.device)[:, None]
        here, aim = own[i], aside(output.double())
        square, product, aimed = (each.sum(1) for each in (here**2, here * aim, aim**2))
        far = share**2 * square + 2 * share * (1 - share) * product + (1 - share) ** 2 * aimed
        cost[i, i + 1 :] = far.clamp(min=0).sqrt().mean(1).cpu().numpy() - there[i + 1 :]
    return cost


def norm(x: Tensor) -> Tensor:
    """The length of each sample."""
    return x.flatten(1).norm(dim=1)
