"""Models as what drivers run: a chain, and the images of what it ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import samplers
from ..eval.models import Draw, Model, NetworkModel
from ..schedules import Grid, grid
from ..steering import Chain
from .named import Asked, guided


class Steerable(NamedTuple):
    """A chain, and the images [B, C, H, W] in [-1, 1] of its samples, for rewards."""

    chain: Chain
    images: Callable[[Tensor], Tensor]


def steerable(
    model: Model,
    solver: str,
    steps: int,
    *,
    spacing: str = "uniform",
    levels: int | Sequence[int] = 5,
    label: int | None = None,
    asked: Sequence[Asked] = (),
    batch_size: int = 64,
) -> Steerable:
    """A model with a solver of so many steps, looked at on `levels`: their nodes, or how many.

    A deterministic solver goes back to more noise at every level, of which node 0 is none (see
    `samplers.restarted`). Samples are of one `label`, or of none; of a pipeline with prompts it is
    the number of one, and `asked` a scale alone. Raises ValueError for a label that there is not,
    or that is missing, and what `Chain` does.
    """
    if label is not None and not 0 <= label < (model.classes or 0):
        raise ValueError(f"label {label} is not one of the {model.classes or 0} of {model.name}")
    nodes = grid(model.schedule, steps, spacing)
    if not isinstance(model, NetworkModel):
        return of_pipeline(model, solver, nodes, levels, label, asked, batch_size)
    table, places = stochastic(solver, nodes, levels)

    def denoiser(size: int) -> samplers.Denoiser:
        labels = None if label is None else torch.full((size,), label)
        draw = Draw(range(size), labels)
        return guided(asked, model, draw)(model.denoiser_of(draw))

    chain = Chain(table, denoiser, model.shape, places, batch_size=batch_size, device=model.device)
    return Steerable(chain, (lambda x: x) if model.decode is None else model.decode)


def stochastic(
    solver: str, nodes: Grid, levels: int | Sequence[int]
) -> tuple[samplers.Tableau, tuple[int, ...]]:
    """The table of a solver, with restarts if it draws no noise, and its levels."""
    table = samplers.build(solver, nodes)
    if table.stochastic:
        return table, placed(levels, table)
    # Before the first restart all begin in noise of their own.
    places = placed(levels + 1, table)[1:] if isinstance(levels, int) else tuple(levels)
    table = samplers.restarted(solver, nodes, places)
    return table, tuple(table.meta["levels"])


def placed(levels: int | Sequence[int], table: samplers.Tableau) -> tuple[int, ...]:
    """Nodes between steps, so many of them and evenly spaced, or those that are given."""
    if not isinstance(levels, int):
        return tuple(levels)
    steps = [n for n, inside in enumerate(table.grid.stage[:-1]) if not inside]
    if not 1 <= levels <= len(steps):
        raise ValueError(f"levels: 1 to {len(steps)} for {len(steps)} steps, not {levels}")
    return tuple(steps[round(k * len(steps) / levels)] for k in range(levels))


def of_pipeline(
    model: Model,
    solver: str,
    nodes: Grid,
    levels: int | Sequence[int],
    label: int | None,
    asked: Sequence[Asked],
    batch_size: int,
) -> Steerable:
    """A pipeline of diffusers with one of its prompts."""
    # Here, because it takes seconds.
    from ..eval.models.pipeline import PipelineModel
    from ..integrations import pipeline_denoiser

    if not isinstance(model, PipelineModel):
        raise ValueError(f"{model.name} is neither a network nor a pipeline: it cannot be driven")
    if any(each.name != "cfg" for each in asked) or len(asked) > 1:
        raise ValueError(f"{model.name} is a whole pipeline, which takes a guidance scale alone")
    scale = asked[0].options["scale"] if asked else 1.0
    if label is None and len(model.prompts) == 1:
        label = 0
    if label is None and model.classes:
        raise ValueError(f"{model.name} draws one of {model.classes} kinds: give a label")
    labels = None if label is None else torch.tensor([label])
    told = model.conditions(Draw([0], labels, scale))
    call = {key: value for key, value in {**model.call, **told}.items() if key not in COUNTED}
    denoiser = pipeline_denoiser(model.pipe, **call)
    table, places = stochastic(solver, nodes, levels)
    chain = denoiser.chain(table, levels=places, batch_size=batch_size)
    return Steerable(chain, denoiser.images)


# What a chain decides by itself.
COUNTED = ("batch_size", "output_type")
