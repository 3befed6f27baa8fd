"""What a run does besides its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...samplers.gaussian_data import GaussianData
from ...samplers.time_shift import TimeShift


@dataclass(frozen=True, eq=False)
class Extras:
    """Another beginning, other times, smaller noise; by default nothing.

    With `teleport` the noise is that of the schedule's own beginning, which these laws take to node
    0. `shift` moves the times of samples, in a table that is its own. Predicted noise is divided by
    base + slope n at node n, `eps` being the two.
    """

    teleport: GaussianData | None = None
    shift: TimeShift | None = None
    eps: tuple[float, float] = (1.0, 0.0)

    @property
    def parts(self) -> list[Any]:
        """All that decides what they do to samples, for a digest; empty where there are none."""
        parts: list[Any] = [] if self.teleport is None else [self.teleport.key]
        if self.shift is not None:
            shift = self.shift
            parts += [shift.mode, shift.window, shift.cutoff, shift.data_variance, shift.resolution]
        return parts if self.eps == (1.0, 0.0) else [*parts, "eps", *self.eps]

    def __bool__(self) -> bool:
        return bool(self.parts)


NONE = Extras()
