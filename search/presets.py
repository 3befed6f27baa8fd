"""Published solvers as solver schedules: where a search may begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..samplers.dpm import Form, singlestep_orders
from ..samplers.multistep import step_orders
from ..schedules import Grid
from .schedule import Prediction, Relaxation, SolverSchedule, Step, Update


def correcting(predictor: Update, relaxation: Relaxation = 0.0) -> Update:
    """The corrector of a predictor: one order more, every derivative by the target's output, too.

    The new derivative is estimated by the outputs of the highest there was (Zhao et al. 2023,
    "UniPC", algorithm 1; so do all correctors of the schedules that USF published).
    """
    before = (*predictor.estimates, *(predictor.estimates[-1:] or ((),)))
    estimates = tuple((0, *(each + 1 for each in points)) for points in before)
    return Update(predictor.start + 1, estimates, relaxation)


def multistep(
    grid: Grid,
    order: int,
    prediction: Prediction = "x0",
    relaxation: Relaxation = 0.0,
    corrector: bool = False,
) -> SolverSchedule:
    """Exponential multistep steps with polynomials through `order` outputs, fewer at both ends.

    `relaxation` is that of rules of order 2 only: "bh2" for DPM-Solver(++), "bh1" or "bh2" for
    UniPC, none for DEIS in log rho and for exact coefficients.
    """

    def eased(update: Update) -> Update:
        return Update(update.start, update.estimates, relaxation if update.order == 2 else 0.0)

    steps = []
    for n, p in enumerate(step_orders(grid, order, lower_final=True).tolist()):
        predictor = eased(Update(estimates=(tuple(range(1, p)),) * (p - 1)))
        # Nothing can be corrected in an infinite step, nor in the last.
        able = corrector and grid.alpha[n] > 0 and n < grid.nfe - 1
        steps.append(Step(prediction, predictor, eased(correcting(predictor)) if able else None))
    return SolverSchedule(tuple(grid.time.tolist()), tuple(steps))


def singlestep(
    grid: Grid, order: int, prediction: Prediction = "x0", form: Form = "midpoint"
) -> SolverSchedule:
    """DPM-Solver(++) singlestep: see `samplers.dpm_singlestep`, whose orders and forms these are.

    A step of order p starts p - 1 states before the newest one. An infinite one has no interior:
    it is cut into steps of order 1.
    """
    remedy: Relaxation = "bh2" if form == "midpoint" else 0.0
    rules = {
        1: Update(),
        2: Update(1, ((0,),), remedy),
        3: Update(2, ((0,),) if form == "midpoint" else ((1, 0),) * 2),
    }
    steps = tuple(
        Step(prediction, rules[p if np.isfinite(grid.lam[n + 1] - grid.lam[n - p + 1]) else 1])
        for n, p in enumerate(singlestep_orders(grid.nfe, order))
    )
    return SolverSchedule(tuple(grid.time.tolist()), steps)


PRESETS: dict[str, Callable[[Grid], SolverSchedule]] = {
    "ddim": partial(multistep, order=1),
    "dpmpp-2m": partial(multistep, order=2, relaxation="bh2"),
    **{f"ab-{p}": partial(multistep, order=p) for p in (2, 3, 4)},
    "dpm-2m": partial(multistep, order=2, prediction="eps", relaxation="bh2"),
    **{f"deis-{p}": partial(multistep, order=p, prediction="eps") for p in (2, 3, 4)},
    **{
        f"unipc-{p}": partial(multistep, order=p, relaxation="bh2", corrector=True)
        for p in (1, 2, 3, 4)
    },
    **{f"dpmpp-{p}s": partial(singlestep, order=p) for p in (2, 3)},
    **{f"dpm-{p}s": partial(singlestep, order=p, prediction="eps") for p in (2, 3)},
}


def preset(name: str, grid: Grid) -> SolverSchedule:
    """The schedule of a solver of `samplers.solvers` on the nodes of a grid without stages.

    Raises ValueError for a name that is not in `PRESETS`, which says which are.
    """
    if name not in PRESETS:
        raise ValueError(f"{name!r} is no preset of a search; choose one of {', '.join(PRESETS)}")
    return PRESETS[name](grid)
