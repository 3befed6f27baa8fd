"""Many tables on the same noises, side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import samplers
from ..eval.models import Draw, NetworkModel
from ..samplers import Denoiser, Tableau
from ..samplers.denoiser import several
from ..schedules.grid import Node


@torch.no_grad()
def population_images(
    model: NetworkModel, tables: Sequence[Tableau], draw: Draw, at_once: int = 64
) -> Tensor:
    """The images of P tables on the M samples of a draw, [P, M, C, H, W], on the model's device.

    They are those of `model.images` for each table, but all tables go from node to node together:
    the network gets up to `at_once` samples of whatever tables, each at its own time, and is asked
    once for all tables that are in the same state (see `shared`). The states of all are kept
    meanwhile. Tables may differ in what they cost.

    Raises ValueError for no tables, and for one that is not on the noise schedule of the model.
    """
    if not tables or at_once < 1:
        raise ValueError(
            f"population: {len(tables)} tables and {at_once} samples at once; at least 1 of each"
        )
    other = next((each for each in tables if each.grid.schedule != model.schedule), None)
    if other is not None:
        raise ValueError(f"population: {other!r} is not on the noise schedule of {model.name}")
    numeric, size = [table.numeric() for table in tables], len(draw.seeds)
    starts = {
        table.grid.sigma[0]: samplers.noise(
            table.grid, model.shape, draw.seeds, device=model.device, source=draw.source
        )
        for table in numeric
    }
    states = [samplers.initial(table, starts[table.grid.sigma[0]], draw.seeds) for table in numeric]
    for n, asking in enumerate(shared(numeric)):
        x0: dict[int, Tensor] = {}
        if asking:
            nodes = [numeric[p].grid.nodes[n] for p in asking for _ in range(size)]
            found = asked(model, torch.cat([states[p].x for p in asking]), nodes, draw, at_once)
            for same, out in zip(asking.values(), found.split(size), strict=True):
                x0 |= dict.fromkeys(same, out)
        states = [
            samplers.advance(state, given(x0, p), table)
            for p, (state, table) in enumerate(zip(states, numeric, strict=True))
        ]
    x = torch.cat([state.x for state in states])
    if model.decode is not None:
        x = torch.cat([model.decode(part) for part in x.split(at_once)])
    return x.unflatten(0, (len(tables), size))


def given(x0: Mapping[int, Tensor], p: int) -> Denoiser:
    """The denoiser of table p where the network was asked already."""
    return lambda x, node: x0[p]


def asked(
    model: NetworkModel, x: Tensor, nodes: Sequence[Node], draw: Draw, at_once: int
) -> Tensor:
    """x0 of states x, [G M, ..], each at its own node, in even batches of at most `at_once`.

    They are G times the samples of the draw.
    """
    found = []
    for part in np.array_split(np.arange(len(x)), -(-len(x) // at_once)):
        rows, here = slice(part[0], part[-1] + 1), nodes[part[0]]
        if here is not nodes[part[-1]]:
            here = several(nodes[rows], x[rows])
        samples = taken(draw, (part % len(draw.seeds)).tolist())
        found.append(model.denoiser_of(samples)(x[rows], here))
    return torch.cat(found)


def shared(tables: Sequence[Tableau]) -> list[dict[int, list[int]]]:
    """For each node, the tables that ask the network there, by the first one in the same state.

    States are the same if the nodes up to here and the rows before are, bit by bit. Tables that
    start at the same time share their first evaluation, and those that next go to the same time,
    which is order 1 for all, the second.
    """
    states: list[Hashable] = [table.basis for table in tables]
    nodes = []
    for n in range(max(table.grid.nfe for table in tables)):
        firsts: dict[Hashable, int] = {}
        asking: dict[int, list[int]] = {}
        for p, table in enumerate(tables):
            if n >= table.grid.nfe:
                continue
            node = table.grid.nodes[n]
            state = (states[p], node.time, node.alpha, node.sigma, node.label)
            first = firsts.setdefault(state, p)
            if table.steps[n].call:
                asking.setdefault(first, []).append(p)
            row = (table.weights[n, : n + 1], table.noise[n, : n + 1], table.bias[n])
            states[p] = (first, float(table.carry[n]), *(each.tobytes() for each in row))
        nodes.append(asking)
    return nodes


def taken(draw: Draw, index: Sequence[int]) -> Draw:
    """The samples `index` of a draw."""
    labels = None if draw.labels is None else draw.labels[list(index)]
    return replace(draw, seeds=[draw.seeds[m] for m in index], labels=labels)
