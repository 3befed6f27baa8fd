"""What the settings of a solver ask of a run besides its table."""

from __future__ import annotations

from .gaussian import teleporting
from .models import Model, NetworkModel
from .models.extras import Extras
from .settings import Planned, ScaleConfig, SolverConfig


def extras_of(solver: SolverConfig, plan: Planned, model: Model) -> Extras:
    """The extras of a planned solver on a model; ValueError for what cannot be had there."""
    name = solver.label or solver.name
    if not isinstance(model, NetworkModel):
        if solver.besides:
            raise ValueError(
                f"{name}: {solver.besides[0]}: {model.name} is a whole pipeline, which runs tables "
                "alone; to teleport its latents see integrations.teleported"
            )
        if plan.table.weights.ndim > 2:
            raise ValueError(
                f"{name}: the coefficients of {plan.table!r} are images, and what {model.name} is "
                "given here are numbers; in a program fewstep.use takes it by its name"
            )
    scale = solver.scale_eps or ScaleConfig()
    asked = [row.node for row in plan.table.steps if row.call]
    factors = [scale.base + scale.slope * node.index for node in asked]
    if min(factors) <= 0:
        raise ValueError(f"{name}: scale_eps: noise divided by {min(factors):g} is not smaller")
    if asked[0].alpha == 0 and factors[0] != 1:
        raise ValueError(
            f"{name}: scale_eps: the first node is pure noise, where eps says nothing about x0; "
            "leave base at 1 and give a slope"
        )
    return Extras(
        teleporting(solver.start, model.shape, model.classes),
        plan.shift,
        (scale.base, scale.slope),
    )
