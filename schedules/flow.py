"""Flow matching with linear interpolation: alpha = 1 - sigma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import override

from .base import Float, Form, Schedule, as_times, check_t_min, softplus


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """sigma(t) = shift t / (1 + (shift - 1) t), alpha = 1 - sigma, on t in [0, 1].

    Liu et al. 2023, "Flow Straight and Fast"; the shift is that of Esser et al. 2024, "Scaling
    Rectified Flow Transformers", eq. 23. The label is 1000 sigma. At t = 1 the signal is zero.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    form: ClassVar[Form] = "flow"

    def __post_init__(self) -> None:
        if not 0 < self.shift < np.inf:
            raise ValueError(f"FlowMatching needs shift > 0, not {self.shift}")
        check_t_min(self.t_min, "FlowMatching")

    @override
    def lam(self, t: ArrayLike) -> Float:
        t = as_times(t, 0, 1, "FlowMatching")
        with np.errstate(divide="ignore"):
            return np.log1p(-t) - np.log(t) - np.log(self.shift)

    @override
    def time(self, lam: ArrayLike) -> Float:
        # Undo the shift in lam, where it is an offset: t = sigmoid(-(lam + log shift)).
        return np.exp(-softplus(np.asarray(lam, dtype=np.float64) + np.log(self.shift)))

    @override
    def label(self, t: ArrayLike) -> Float:
        return 1000 * self.sigma(t)

    @override
    def time_of(self, label: ArrayLike) -> Float:
        sigma = np.asarray(label, dtype=np.float64) / 1000
        return sigma / (sigma + self.shift * (1 - sigma))
