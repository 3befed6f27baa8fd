"""Diffusers schedulers and the builders that should equal them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
from fewstep import samplers as S
from fewstep.samplers import Tableau
from fewstep.schedules import Grid

from .helpers import SD, row_error, steps_of

TOLERANCE = 1e-6

NFES = (1, 2, 3, 5, 10, 50)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SPACINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "trailing-v": {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "karras": {"use_karras_sigmas": True},
    "karras-x0": {"use_karras_sigmas": True, "prediction_type": "sample"},
    "exponential": {"use_exponential_sigmas": True},
    "beta-v": {"use_beta_sigmas": True, "prediction_type": "v_prediction"},
    "flow": FLOW,
    "flow-eps": {**FLOW, "prediction_type": "epsilon"},
    "flow-v": {**FLOW, "prediction_type": "v_prediction"},
}
# Spacings that set the last node at sigma_min themselves: a final sigma_min would repeat it.
ENDS_AT_MIN = ("karras", "karras-x0", "exponential", "beta-v", "flow", "flow-eps", "flow-v")

MADE: dict[str, Any] = {}


@dataclass(frozen=True)
class Case:
    """A scheduler class with a configuration, and the builder that should be the same."""

    kind: str
    build: Callable[[Grid], Tableau]
    config: dict[str, Any] = field(default_factory=dict)

    def scheduler(self, **config: Any) -> Any:
        """A copy of one that is made once: some of them take a second."""
        given = {**self.config, **config}
        key = f"{self.kind} {given}"
        if key not in MADE:
            MADE[key] = getattr(diffusers, self.kind)(**given)
        return copy.deepcopy(MADE[key])

    def check(self, nfe: int, **config: Any) -> None:
        if self.kind == "DPMSolverSinglestepScheduler":
            config.pop("timestep_spacing", None)
        scheduler = self.scheduler(**config)
        scheduler.set_timesteps(nfe)
        # That it is linear, the table that is built says.
        theirs = S.trace(scheduler, check=False)
        assert row_error(self.build(steps_of(theirs)), theirs) <= TOLERANCE


def few(grid: Grid) -> bool:
    """Where `lower_order_final` of the DPM and DEIS classes acts."""
    return grid.nfe < 15


def multistep() -> Iterator[tuple[str, Case]]:
    """Classes that share the sigma spacings, in forms that may end in clean data."""
    dpm, sde = "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    for order in (1, 2, 3):
        for form in ("midpoint", "heun"):
            yield (
                f"dpmpp-{order}m-{form}",
                Case(
                    dpm,
                    # Their third order is the released one in both forms.
                    lambda g, order=order, form=form: S.dpm(
                        g, order, form=form, lower_final=few(g)
                    ),
                    {**SD, "solver_order": order, "solver_type": form},
                ),
            )
            if order < 3:
                yield (
                    f"sde-dpmpp-{order}m-{form}",
                    Case(
                        dpm,
                        lambda g, order=order, form=form: S.sde_dpm(
                            g, order, form=form, lower_final=few(g)
                        ),
                        {**SD, **sde, "solver_order": order, "solver_type": form},
                    ),
                )
            if order > 1:
                yield (
                    f"dpmpp-{order}s-{form}",
                    Case(
                        "DPMSolverSinglestepScheduler",
                        lambda g, order=order, form=form: S.dpm_singlestep(g, order, form=form),
                        {
                            **SD,
                            "solver_order": order,
                            "solver_type": form,
                            "lower_order_final": True,
                        },
                    ),
                )
    for order in (1, 2, 3, 4):
        # Their bh1 is NaN into clean data.
        yield (
            f"unipc-{order}",
            Case(
                "UniPCMultistepScheduler",
                lambda g, order=order: S.unipc(g, order),
                {**SD, "solver_order": order},
            ),
        )
    yield (
        "unipc-3-corrector-later",
        Case(
            "UniPCMultistepScheduler",
            lambda g: S.unipc(g, 3, corrector=[k > 1 for k in range(g.nfe)]),
            {**SD, "solver_order": 3, "disable_corrector": [0, 1]},
        ),
    )
    yield (
        "unip-3",
        Case(
            "UniPCMultistepScheduler",
            lambda g: S.unipc(g, 3, corrector=False),
            {**SD, "solver_order": 3, "disable_corrector": list(range(50))},
        ),
    )


def noise_native() -> Iterator[tuple[str, Case]]:
    """Algorithms that cannot end in clean data, mostly on eps, and so end at sigma_min."""
    dpm, end = "DPMSolverMultistepScheduler", {**SD, "final_sigmas_type": "sigma_min"}
    for order in (1, 2, 3):
        for form in ("midpoint", "heun"):
            yield (
                f"dpm-{order}m-{form}",
                Case(
                    dpm,
                    lambda g, order=order, form=form: S.dpm(
                        g, order, "eps", form=form, lower_final=few(g)
                    ),
                    {
                        **end,
                        "algorithm_type": "dpmsolver",
                        "solver_order": order,
                        "solver_type": form,
                    },
                ),
            )
            if order < 3:
                yield (
                    f"sde-dpm-{order}m-{form}",
                    Case(
                        dpm,
                        lambda g, order=order, form=form: S.sde_dpm(
                            g, order, "eps", form=form, lower_final=few(g)
                        ),
                        {
                            **end,
                            "algorithm_type": "sde-dpmsolver",
                            "solver_order": order,
                            "solver_type": form,
                        },
                    ),
                )
            if order > 1:
                yield (
                    f"dpm-{order}s-{form}",
                    Case(
                        "DPMSolverSinglestepScheduler",
                        lambda g, order=order, form=form: S.dpm_singlestep(
                            g, order, "eps", form=form
                        ),
                        {
                            **end,
                            "algorithm_type": "dpmsolver",
                            "solver_order": order,
                            "solver_type": form,
                            "lower_order_final": True,
                        },
                    ),
                )
        yield (
            f"deis-{order}",
            Case(
                "DEISMultistepScheduler",
                lambda g, order=order: S.adams(g, order, "eps", lower_final=few(g)),
                {**SD, "solver_order": order},
            ),
        )
        for variant in ("bh1", "bh2"):
            yield (
                f"unipc-eps-{order}-{variant}",
                Case(
                    "UniPCMultistepScheduler",
                    lambda g, order=order, variant=variant: S.unipc(
                        g, order, variant, prediction="eps"
                    ),
                    {**end, "solver_order": order, "solver_type": variant, "predict_x0": False},
                ),
            )
    for order in (1, 2, 3, 4):
        yield (
            f"unipc-{order}-bh1",
            Case(
                "UniPCMultistepScheduler",
                lambda g, order=order: S.unipc(g, order, "bh1"),
                {**end, "solver_order": order, "solver_type": "bh1"},
            ),
        )
    for predictor, corrector in ((1, 1), (1, 2), (2, 2), (3, 3), (3, 4)):
        for tau in (0.0, 1.0):
            for kind, basis in (("data_prediction", "x0"), ("noise_prediction", "eps")):
                yield (
                    f"sa-{predictor}-{corrector}-{tau:g}-{basis}",
                    Case(
                        "SASolverScheduler",
                        lambda g, p=predictor, c=corrector, tau=tau, basis=basis: S.sa(
                            g, p, c, tau, basis
                        ),
                        {
                            **SD,
                            "predictor_order": predictor,
                            "corrector_order": corrector,
                            "algorithm_type": kind,
                            "tau_func": lambda t, tau=tau: tau,
                        },
                    ),
                )


MULTISTEP = dict(multistep())
NOISE_NATIVE = dict(noise_native())
