"""Where times lie between noise and data, as shares of the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ..schedules import Schedule, Spacing
from ..schedules.base import Float
from ..schedules.spacing import SPACINGS, TRANSFORMS


@dataclass(frozen=True)
class Ruler:
    """The way from t_max (share 0) to t_min (share 1) of a law, measured as a spacing places nodes.

    The share of a time is (y^(1/rho) - a) / (b - a), y the variable of the spacing there and a and
    b its powers at the ends; log y for rho = inf. Spacings in sigma / alpha act on the sigma of a
    flow where `schedules.grid` does. Raises ValueError for a spacing in lam from pure noise.
    """

    law: Schedule
    spacing: Spacing = SPACINGS["karras"]

    def __post_init__(self) -> None:
        pure = np.isneginf(self.law.lam(self.law.t_max))
        if self.spacing.variable == "lam" and pure:
            raise ValueError(
                "ruler: the way from pure noise is infinite in lam; measure it in time"
            )
        if self.spacing.variable == "nsr" and (self.law.form == "flow" or pure):
            object.__setattr__(self, "spacing", replace(self.spacing, variable="flow_sigma"))

    def shares(self, times: ArrayLike) -> Float:
        """The shares of times, of any shape."""
        a, b = self._powers([self.law.t_max, self.law.t_min])
        return np.asarray((self._powers(times) - a) / (b - a))

    def times(self, shares: Sequence[float] | Float) -> Float:
        """The times at shares in [0, 1], of any shape."""
        a, b = self._powers([self.law.t_max, self.law.t_min])
        power = a + np.asarray(shares) * (b - a)
        y = np.exp(power) if np.isinf(self.spacing.rho) else power**self.spacing.rho
        if self.spacing.variable == "time":
            return np.asarray(y + self.law.t_zero)
        with np.errstate(divide="ignore"):
            return self.law.time(TRANSFORMS[self.spacing.variable][1](y))

    def _powers(self, times: ArrayLike) -> Float:
        variable, rho = self.spacing.variable, self.spacing.rho
        if variable == "time":
            y: Float = np.asarray(times, dtype=np.float64) - self.law.t_zero
        else:
            y = TRANSFORMS[variable][0](self.law.lam(times))
        # Clean data may be infinitely far.
        with np.errstate(divide="ignore"):
            return np.log(y) if np.isinf(rho) else np.asarray(y ** (1 / rho))
