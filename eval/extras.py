"""What the settings of a solver ask of a run besides its table."""

from __future__ import annotations

from functools import partial

from .. import samplers
from .gaussian import teleporting
from .models import Model, NetworkModel
from .models.extras import Extras
from .settings import SolverConfig


def extras_of(solver: SolverConfig, table: samplers.Tableau, model: Model) -> Extras:
    """The extras of a solver's `table` on a model; ValueError for what cannot be had there."""
    name = solver.label or solver.name
    asked = [key for key in ("start", "shift", "scale_eps") if getattr(solver, key) is not None]
    if asked and not isinstance(model, NetworkModel):
        raise ValueError(
            f"{name}: {asked[0]}: {model.name} is a whole pipeline, which runs tables alone; to "
            "teleport its latents see integrations.teleported"
        )
    shift, scale = None, solver.scale_eps
    if solver.shift is not None:
        if samplers.is_family(solver.name):
            raise ValueError(f"{name}: shift: tables of files cannot be built at other times")
        build = partial(samplers.build, solver.name, **solver.options)
        nodes = table.grid.without_stages()
        shift = samplers.time_shift(build, nodes, **solver.shift.model_dump())
    return Extras(
        teleporting(solver.start, model.shape, model.classes),
        shift,
        (1.0, 0.0) if scale is None else (scale.base, scale.slope),
    )
