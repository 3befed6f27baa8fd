"""What makes the parts of solver schedules fit together, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..schedules.base import Float
from .presets import correcting
from .schedule import Prediction, Step, Update

# None; one that reuses the output at the predicted state; one that asks again at the corrected.
Correction = Literal["none", "reuse", "again"]


def correction_of(step: Step) -> Correction:
    """How a step corrects."""
    return "none" if step.corrector is None else "again" if step.again else "reuse"


def stepped(prediction: Prediction, predictor: Update, kind: Correction) -> Step:
    """A step whose corrector, if any, follows from its predictor."""
    corrector = None if kind == "none" else correcting(predictor)
    return Step(prediction, predictor, corrector, kind == "again")


def trimmed(update: Update, room: int, order: int, starts: Sequence[int]) -> Update:
    """The update through no more than the `room` newest outputs, the newest of all among them.

    It starts at one of `starts`, or 0, and has at most that order. Outputs that are not there are
    replaced by the nearest that a derivative needs, or dropped.
    """
    start = update.start if update.start in starts and update.start < room else 0
    pool = [each for each in range(room) if each != start]
    estimates: list[tuple[int, ...]] = []
    for k, points in enumerate(update.estimates[: min(order - 1, len(pool))], 1):
        kept = [each for each in points if each in pool]
        kept += [each for each in pool if each not in kept][: max(k - len(kept), 0)]
        estimates.append(tuple(sorted(kept)))
    if not estimates:
        return Update()
    if start and not any(0 in points for points in estimates):
        estimates[-1] = (0, *estimates[-1])
    return Update(start, tuple(estimates), update.relaxation)


def apart(marks: Float, low: int, top: int) -> NDArray[np.int64]:
    """The marks in order, all different and from `low` to `top`, moved as little as that needs."""
    steps = np.arange(len(marks))
    rising = np.maximum.accumulate(np.sort(np.clip(marks, low, top)) - steps)
    return np.asarray(np.minimum(rising, top + 1 - len(marks)) + steps, dtype=np.int64)
