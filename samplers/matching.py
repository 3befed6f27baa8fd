"""The time of a state by its variance."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ..schedules import Grid, Schedule
from ..schedules.base import Float

# Points of a window without steps; between them the variance is taken as a straight line.
FINE = 512


def marginal_variance(schedule: Schedule, times: ArrayLike, data_variance: float) -> Float:
    """V(t) = alpha_t^2 data_variance + sigma_t^2: the variance of the entries of a state."""
    return schedule.alpha(times) ** 2 * data_variance + schedule.sigma(times) ** 2


def sample_variance(x: Tensor) -> Float:
    """The unbiased variance of each sample over its entries, float64 [B]; reads the device.

    Raises ValueError for samples of one number.
    """
    if x[:1].numel() == 1:
        raise ValueError("a sample of one number has no variance, which tells its time")
    variance: Float = x.detach().flatten(1).var(1).double().cpu().numpy()
    return variance


class Window(NamedTuple):
    """Times that a state may be of, rising, and the variance of states there.

    Either a few, or, if `between`, points of a curve that connects them.
    """

    times: Float
    variances: Float
    between: bool

    @classmethod
    def around(
        cls, grid: Grid, k: int, width: float, data_variance: float, resolution: float = 0.0
    ) -> Window:
        """Times around node k, at labels of the schedule in [label - width / 2, label + width / 2].

        At label + j `resolution`, or all between where that is 0; clipped to the schedule's range.
        """
        law, label = grid.require_schedule(), float(grid.label[k])
        low, high = law.label([law.t_min, law.t_max])
        if resolution:
            reach = int(width / 2 / resolution + 1e-9)
            labels = label + resolution * np.arange(-reach, reach + 1)
            labels = labels[(labels >= low) & (labels <= high)]
        else:
            start, stop = max(label - width / 2, low), min(label + width / 2, high)
            labels = np.linspace(start, stop, FINE + 1)
        # Unchanged where it stays, whatever the way through the label rounds.
        times = np.where(labels == label, grid.time[k], law.time_of(labels))
        return cls(times, marginal_variance(law, times, data_variance), resolution == 0)

    def match(self, variance: Float) -> Float:
        """The times whose variance is nearest, [B]; the lowest where several are.

        Of a curve that turns back, the nearest of its points.
        """
        for curve in (self, Window(self.times[::-1], self.variances[::-1], self.between)):
            if self.between and (np.diff(curve.variances) > 0).all():
                return np.interp(variance, curve.variances, curve.times)
        return self.times[np.abs(variance[:, None] - self.variances).argmin(1)]


def warn_if_flat(schedule: Schedule, data_variance: float) -> None:
    """Warn if states have much the same variance at all times."""
    times = np.linspace(schedule.t_min, schedule.t_max, 101)
    variances = marginal_variance(schedule, times, data_variance)
    if np.ptp(variances) < 0.1 * variances.max():
        warnings.warn(
            f"states of data of variance {data_variance:.3g} have a variance of "
            f"{variances.min():.3g} to {variances.max():.3g} at all times, which hardly tells the "
            f"time: on data of unit variance, such as latents, time shift follows chance",
            stacklevel=4,
        )
