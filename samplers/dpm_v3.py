"""DPM-Solver-v3: what is linear in a network, pixel by pixel, is integrated exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from ..schedules import Grid
from ..schedules.base import Float
from .kernels import kernel
from .model_statistics import ModelStatistics
from .multistep import corrected, step_orders
from .relations import Rows, change_outputs, trailing
from .tableau import Tableau

Pseudo = Literal["none", "predictor", "corrector", "both"]
Half = Literal["paper", "released"]
# Gauss's points on [0, 1], their weights, and the integrals from 0 to each of them.
POINTS, WEIGHTS = (each / 2 for each in np.polynomial.legendre.leggauss(6))
POINTS = POINTS + 0.5
POWERS = np.arange(len(POINTS))
INNER = (POINTS[:, None] ** (POWERS + 1) / (POWERS + 1)) @ np.linalg.inv(POINTS[:, None] ** POWERS)
# In lam, the longest interval that these integrate over at once.
PANEL = 0.25
# l = 1, s = 0, b = 0: the exponential integrator in x0.
PLAIN = ModelStatistics(np.zeros(1), np.ones(1), np.zeros(1), np.zeros(1))


def dpm_v3(
    grid: Grid,
    statistics: ModelStatistics | str | Path | None = None,
    order: int = 3,
    corrector: bool = True,
    pseudo: Pseudo = "none",
    extra: int | None = None,
    half: Half | None = None,
    lower_final: bool = True,
) -> Tableau:
    """DPM-Solver-v3 with the statistics l, s, b of a model (see `model_statistics`), or their file.

    With f = (sigma eps - l x) / alpha and g = e^(-S) f - int e^(-S) b dlam, L = int l dlam and
    S = int s dlam from lam_s on, the probability flow is

        x_t = (alpha_t / alpha_s) e^(-L_t) x_s - alpha_t e^(-L_t) int e^(L + S) (g + int e^(-S) b)

    and g is the polynomial in lam through `order` outputs, the corrector's through `extra` more (by
    default as released, none, or one with pseudo-order), the target's among them. A corrector keeps
    f of its target, not eps, and costs no evaluation. Statistics are per pixel, and so are the
    coefficients; None is l = 1, s = b = 0, with which this is UniPC's exact variant ("ab-p" without
    a corrector; `extra` = 1 otherwise), and l = 0, s = -1 is the same in eps. Statistics of any
    schedule will do: cubic splines through them in lam are integrated, and beyond their ends they
    stay what they are there. The meta of the table says how far from their nodes its own are.

    `pseudo` takes the k-th derivative from the first k + 1 outputs alone, for the predictor, the
    corrector or both: more stable, and of order 2 at most. `half` corrects only where the fraction
    of time that is left is at most 0.5 ("paper"), or only above ("released": the other half).
    A step from pure noise or into clean data is plain, in x0 and of order 1; what a corrector moved
    the last state by moves its x0, too, because f is kept. The order of convergence is `order`, and
    one more with `extra` = 1 and no pseudo-order.

    Zheng et al. 2023, "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model
    Statistics", section 3; the released code where they differ. Raises ValueError for a bad option,
    and a file that holds no statistics.
    """
    if pseudo not in ("none", "predictor", "corrector", "both"):
        raise ValueError(f"dpm-v3: pseudo is none, predictor, corrector or both, not {pseudo!r}")
    if half not in (None, "paper", "released"):
        raise ValueError(f"dpm-v3: half is paper, released or None, not {half!r}")
    ahead, back = pseudo in ("predictor", "both"), pseudo in ("corrector", "both")
    extra = int(back) if extra is None else extra
    if extra not in (0, 1):
        raise ValueError(f"dpm-v3: the corrector takes 0 or 1 outputs more, not {extra}")
    if statistics is None:
        statistics = PLAIN
    elif not isinstance(statistics, ModelStatistics):
        statistics = ModelStatistics.load(statistics)
    curves, shape = curves_of(statistics), statistics.shape
    n, orders, linear = grid.nfe, step_orders(grid, order, lower_final), kernel(grid, "x0")
    finite = np.isfinite(grid.lam)
    correcting = corrector_mask(grid, half) if corrector else np.zeros(n, dtype=bool)
    # Outputs are f = of_x x - x0; it is -x0 at pure noise.
    of_x = np.zeros((n, *shape))
    here = np.flatnonzero(finite[:-1])
    of_x[here] = (1 - curves.l.at(grid.lam[here])) / trailing(grid.alpha[here], len(shape))
    carry = np.zeros((n, *shape))
    # The bias goes along as the first column.
    predictor, after = np.zeros((n, n + 1, *shape)), np.zeros((n, n + 2, *shape))
    known = Outputs({})
    for row in range(n):
        if not finite[row : row + 2].all():
            # x0 = of_x x - f, of a state that a corrector may have moved since.
            carry[row] = linear.carry[row] + linear.first[row] * of_x[row]
            predictor[row, row + 1] = -linear.first[row]
            after[row, :-1] = predictor[row]
            continue
        known = known.with_output(row, shape)
        step = integrals(curves, grid.lam[row], grid.lam[row + 1], int(orders[row]) + extra)
        past = list(range(row, row - orders[row], -1))
        carry[row] = grid.alpha[row + 1] / grid.alpha[row] * step.decay
        scale = -grid.alpha[row + 1]
        weights = step.weights(grid.lam[past], ahead)
        predictor[row] = scale * known.row(past, weights, step.constant, n + 1)
        after[row, :-1] = predictor[row]
        used = [row, row + 1, *past[1:]][: len(past) + extra]
        if correcting[row] and len(used) > 1:
            weights = step.weights(grid.lam[used], back)
            target = known.with_target(row + 1, step)
            after[row] = scale * target.row(used, weights, step.constant, n + 2)
        known = known.moved(step)
    whole = corrected(carry, predictor, after)
    rows = Rows(carry, whole[:, 1:], np.zeros((n, n)), whole[:, 0])
    rows = change_outputs(rows, of_x, -np.ones(n))
    meta: dict[str, Any] = {}
    if statistics is not PLAIN:
        far = np.abs(grid.lam[finite][:, None] - statistics.lams).min(1).max(initial=0)
        meta = {"statistics": repr(statistics), "off_nodes": float(far)}
    return Tableau(grid, **rows._asdict(), name="dpm-v3", meta=meta)


def corrector_mask(grid: Grid, half: Half | None) -> NDArray[np.bool_]:
    """Which steps may correct their target: not the last, nor what `half` leaves out; bool [N]."""
    on = np.asarray(np.arange(grid.nfe) < grid.nfe - 1)
    if half is None:
        return on
    law = grid.require_schedule()
    left = (grid.time[1:] - law.t_min) / (law.t_max - law.t_min)
    return np.asarray(on & ((left <= 0.5) if half == "paper" else (left > 0.5)))


class Curve(NamedTuple):
    """A function of lam, with its integral: a spline within the ends, and constant beyond."""

    spline: CubicSpline
    total: CubicSpline
    low: float
    high: float

    def at(self, lam: Float) -> Float:
        """The values [*lam.shape, ..]."""
        return self.spline(np.clip(lam, self.low, self.high))

    def integral(self, lam: Float) -> Float:
        """The integrals from the low end on, [*lam.shape, ..]."""
        inside = np.clip(lam, self.low, self.high)
        value = self.spline(inside)
        return self.total(inside) + trailing(lam - inside, value.ndim - inside.ndim) * value


class Curves(NamedTuple):
    """The statistics as functions, and the lams where they may have kinks."""

    l: Curve
    s: Curve
    b: Curve
    knots: Float


def curves_of(statistics: ModelStatistics) -> Curves:
    """See `Curve`."""
    lams, single = statistics.lams, len(statistics.lams) == 1
    knots = np.append(lams, lams[0] + 1) if single else lams
    found = []
    for values in (statistics.l, statistics.s, statistics.b):
        spline = CubicSpline(knots, np.concatenate([values, values]) if single else values)
        found.append(Curve(spline, spline.antiderivative(), float(lams[0]), float(lams[-1])))
    return Curves(found[0], found[1], found[2], lams)


class Step(NamedTuple):
    """The integrals over a step of length h from lam_s, per pixel; v is the distance over h.

    `decay` is e^(-L_t), `moments` [K, ..] are e^(-L_t) int e^(L + S) v^j dlam, `constant` is that
    with int e^(-S) b for v^j; `growth` is e^(S_t) and `gain` is int e^(S_t - S) b dlam.
    """

    lam: float
    h: float
    decay: Float
    moments: Float
    constant: Float
    growth: Float
    gain: Float

    def weights(self, lam: Float, pseudo: bool) -> Float:
        """What the integral of g takes of its values at these lams, the first at lam_s: [K, ..]."""
        v = (lam - self.lam) / self.h
        # Coefficients of v^j [K, K] from values: divided differences, or the polynomial's own.
        if pseudo:
            apart = v[:, None] - v + np.eye(len(v))
            taylor = np.tril(1 / np.array([apart[:, :k].prod(1) for k in range(1, len(v) + 1)]))
        else:
            taylor = np.linalg.inv(v[:, None] ** np.arange(len(v)))
        return np.tensordot(taylor.T, self.moments[: len(v)], 1)


def integrals(curves: Curves, lam: float, after: float, count: int) -> Step:
    """The integrals from lam to `after`, by Gauss's rule between kinks of the statistics."""
    inside = curves.knots[(curves.knots > lam) & (curves.knots < after)]
    ends = np.concatenate([[lam], inside, [after]])
    parts = np.ceil(np.diff(ends) / PANEL).astype(int)
    breaks = np.concatenate(
        [
            np.linspace(a, b, m, endpoint=False)
            for a, b, m in zip(ends, ends[1:], parts, strict=False)
        ]
        + [[after]]
    )
    widths = np.diff(breaks)
    at = breaks[:-1, None] + widths[:, None] * POINTS
    bounds = np.array([lam, after])
    l, s = curves.l.integral(at), curves.s.integral(at)
    (l_s, l_t), (s_s, s_t) = curves.l.integral(bounds), curves.s.integral(bounds)
    kept = np.exp(l - l_t + s - s_s)
    drive, driven = cumulative(np.exp(s_s - s) * curves.b.at(at), widths)
    v = trailing((at - lam) / (after - lam), kept.ndim - 2)
    moments = np.stack([cumulative(kept * v**j, widths)[1] for j in range(count)])
    growth = np.exp(s_t - s_s)
    return Step(
        lam,
        after - lam,
        np.exp(l_s - l_t),
        moments,
        cumulative(kept * drive, widths)[1],
        growth,
        growth * driven,
    )


def cumulative(values: Float, widths: Float) -> tuple[Float, Float]:
    """Integrals up to every point [P, 6, ..], and the whole, of values at the points of panels."""
    wide = trailing(widths, values.ndim - 2)
    panels = np.tensordot(values, WEIGHTS, (1, 0)) * wide
    before = np.cumsum(panels, 0) - panels
    inner = np.moveaxis(np.tensordot(INNER, values, (1, 1)), 0, 1) * wide[:, None]
    return before[:, None] + inner, panels.sum(0)


@dataclass(frozen=True)
class Outputs:
    """Outputs f as values of g in the step that is taken: g = ratio f + shift, per pixel."""

    terms: Mapping[int, tuple[Float, Float]]

    def with_output(self, k: int, shape: tuple[int, ...]) -> Outputs:
        """With the one at the start of the step, where g is f."""
        return Outputs({**self.terms, k: (np.ones(shape), np.zeros(shape))})

    def with_target(self, k: int, step: Step) -> Outputs:
        """With the one at the end."""
        return Outputs({**self.terms, k: (1 / step.growth, -step.gain / step.growth)})

    def moved(self, step: Step) -> Outputs:
        """For the next step, whose g begins where this one ends."""
        return Outputs(
            {
                k: (ratio * step.growth, shift * step.growth + step.gain)
                for k, (ratio, shift) in self.terms.items()
            }
        )

    def row(self, used: Sequence[int], weights: Float, constant: Float, size: int) -> Float:
        """Bias, then what each output is taken: [size, ..]."""
        line = np.zeros((size, *constant.shape))
        line[0] = constant
        for k, weight in zip(used, weights, strict=True):
            ratio, shift = self.terms[k]
            line[1 + k] = weight * ratio
            line[0] += weight * shift
        return line
