"""How the nodes of a grid are placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv

from .base import Float, Schedule, softplus
from .grid import End, Grid
from .placed import Placed, is_placed
from .vp import VPDiscrete

Variable = Literal["time", "lam", "nsr", "flow_sigma"]


@dataclass(frozen=True)
class Spacing:
    """Power law in one variable: y(u) = (y0^(1/rho) + u (y1^(1/rho) - y0^(1/rho)))^rho.

    `variable` is what is spaced (time; lam; nsr = sigma / alpha; flow_sigma = nsr / (1 + nsr)),
    `rho` the power (inf is the geometric law y0 (y1 / y0)^u) and u runs over [0, 1]: uniformly, or
    at the quantiles of a Beta(a, b) law when `quantiles` is given.
    """

    variable: Variable
    rho: float = 1.0
    quantiles: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.rho > 0 or (self.variable == "lam" and self.rho != 1):
            raise ValueError(
                f"spacing: rho must be positive, and 1 in lam, which changes sign; got {self.rho} "
                f"in {self.variable}"
            )

    def ramp(self, n: int) -> Float:
        """n values of u from 0 to 1 (one value: 0)."""
        u = np.linspace(0, 1, n)
        if self.quantiles is None:
            return u
        return 1 - np.asarray(betaincinv(*self.quantiles, 1 - u), dtype=np.float64)

    def place(self, start: float, stop: float, n: int) -> Float:
        """n values from start to stop; both ends are exact."""
        y = self.between(start, stop, self.ramp(n))
        y[-1], y[0] = stop, start
        return y

    def between(self, start: float, stop: float, u: Float) -> Float:
        """The values y(u) of a law that runs from start at u = 0 to stop at u = 1."""
        if np.isinf(self.rho):
            return start * (stop / start) ** u
        a, b = start ** (1 / self.rho), stop ** (1 / self.rho)
        return np.asarray((a + u * (b - a)) ** self.rho)


SPACINGS: dict[str, Spacing] = {
    "uniform": Spacing("time"),
    "quadratic": Spacing("time", rho=2),
    "power": Spacing("time", rho=1.5),
    "lam": Spacing("lam"),
    "exponential": Spacing("nsr", rho=np.inf),
    "karras": Spacing("nsr", rho=7),
    "beta": Spacing("nsr", quantiles=(0.6, 0.6)),
}


# The spacings of discrete models: three by their names in diffusers, and that of DDIM's authors.
RULES = ("linspace", "leading", "trailing", "quad")


def discrete_times(
    rule: str, total: int, n: int, multistep: bool, offset: int, *, exact: bool = False
) -> Float:
    """The n timesteps of a rule of discrete models, noisiest first: whole numbers unless `exact`.

    linspace: round(linspace(0, total - 1, n)); leading: multiples of total // n, plus `offset`;
    trailing: round(total - k total / n) - 1; quad: linspace(0, sqrt(0.8 total), n)^2, the
    quadratic sub-sequence of DDIM (Song et al. 2021, appendix D.2), never whole. With `multistep`,
    linspace and leading place n + 1 points and drop the cleanest, as the multistep classes of
    diffusers do (Lin et al. 2023, table 2).
    """
    points = n + 1 if multistep and rule in ("linspace", "leading") else n
    whole = np.positive if exact else np.round
    match rule:
        case "linspace":
            # One point is the noisiest, not 0.
            times: Float = whole(np.linspace(0, total - 1, max(points, 2)))[::-1]
        case "leading":
            stride = total / points if exact else total // points
            times = (np.arange(points) * stride)[::-1] + float(offset)
        case "trailing":
            # As numpy sums it, which decides which way diffusers rounds a half.
            times = whole(np.arange(total, 0, -total / n)[:n]) - 1.0
        case "quad":
            # Theirs are cut to whole numbers, which from 30 points on makes time 0 come twice.
            times = (np.linspace(0, np.sqrt(0.8 * total), max(points, 2)) ** 2)[::-1]
        case _:
            raise ValueError(f"timestep_spacing must be one of {', '.join(RULES)}, got {rule!r}")
    return times[:n]


def grid(
    schedule: Schedule,
    nfe: int,
    spacing: str | Path | Spacing | Placed = "karras",
    *,
    end: End = "zero",
    t_max: float | None = None,
    t_min: float | None = None,
    rho: float | None = None,
    multistep: bool = False,
    offset: int = 0,
) -> Grid:
    """Place nfe + 1 nodes on `schedule`, from t_max to clean data or to t_min.

    Parameters
    ----------
    nfe
        Number of steps; for a solver with one network evaluation a step, the network evaluations.
    spacing
        A name, a `Spacing`, or nodes that were `Placed` (or the path of a file or of the folder of
        a run with such), which begin where they were placed. In time: uniform, quadratic, power
        (`rho` sets the power). In lam: lam. In the noise-to-signal ratio nsr = sigma / alpha:
        karras (`rho`, 7), exponential, beta; on flow schedules and from pure noise, where nsr is
        infinite, these act on nsr / (1 + nsr), the sigma of a flow. For VPDiscrete also linspace,
        leading (plus `offset`), trailing, with integer times, and quad; `multistep` as in
        `discrete_times`.
    end
        "zero": the last node is clean data. Spacings in time run on to it, the others place nfe
        nodes down to t_min and append it. "min": the last node is t_min.
    t_max, t_min
        The ends, in the schedule's own time; the schedule's by default.

    Raises
    ------
    ValueError
        For nfe < 1, an unknown spacing, times out of range, or nodes that coincide (named).
    """
    if int(nfe) != nfe or nfe < 1:
        raise ValueError(f"grid: nfe must be a whole number of at least 1, got {nfe}")
    if end not in ("zero", "min"):
        raise ValueError(f"grid: end must be 'zero' or 'min', got {end!r}")
    start = schedule.t_max if t_max is None else t_max
    stop = schedule.t_min if t_min is None else t_min
    rule = named(spacing)
    begun, counted = {"t_max": t_max, "rho": rho}, {"multistep": multistep, "offset": offset}
    given = begun if isinstance(rule, str) else counted
    if isinstance(rule, Placed):
        given = begun | counted | {"t_min": t_min if end == "zero" else None}
    unused = [name for name, value in given.items() if value]
    if unused:
        raise ValueError(f"grid: spacing {spacing!r} has no option {' and '.join(unused)}")
    if isinstance(rule, Placed):
        return rule.place(schedule, nfe, end, t_min)
    if isinstance(rule, str):
        if not isinstance(schedule, VPDiscrete):
            raise ValueError(
                f"grid: spacing {spacing!r} is for VPDiscrete, not {type(schedule).__name__}"
            )
        # A run that ends at t_min is one of n + 1 points, too: the cleanest is its last node.
        ahead = multistep or end == "min"
        times = discrete_times(rule, int(schedule.t_max) + 1, nfe, ahead, offset)
        return Grid.from_times(
            schedule, np.append(times, schedule.t_zero if end == "zero" else stop)
        )
    rule = rule if rho is None else replace(rule, rho=rho)
    if rule.variable == "time":
        # Measured from clean data, so that a power law keeps its meaning where time starts at -1.
        origin = schedule.t_zero
        last = (origin if end == "zero" else stop) - origin
        return Grid.from_times(schedule, origin + rule.place(start - origin, last, nfe + 1))
    ends = schedule.lam([start, stop])
    if rule.variable == "nsr" and (schedule.form == "flow" or np.isneginf(ends[0])):
        rule = replace(rule, variable="flow_sigma")
    to, back = TRANSFORMS[rule.variable]
    low, high = to(ends)
    if not np.isfinite(low):
        raise ValueError(
            f"grid: spacing in lam cannot start at pure noise (time {start}, alpha = 0); "
            f"give t_max a little below it, or use a spacing in time"
        )
    count = nfe if end == "zero" else nfe + 1
    with np.errstate(divide="ignore"):
        times = schedule.time(back(rule.place(low, high, count)))
    # The ends as given: a round trip through lam may leave the legal range by one rounding.
    times[-1], times[0] = stop, start
    return Grid.from_times(schedule, np.append(times, schedule.t_zero) if end == "zero" else times)


def named(spacing: str | Path | Spacing | Placed | Mapping[str, Any]) -> Spacing | Placed | str:
    """The preset of that name in any case, or the name of a rule of `RULES`.

    Or nodes that were placed: of a path to them, or of what is in such a file. What is a spacing
    already stays. ValueError lists all names.
    """
    if isinstance(spacing, Spacing | Placed):
        return spacing
    if isinstance(spacing, Mapping):
        return Placed.from_dict(spacing)
    if isinstance(spacing, Path):
        return Placed.load(spacing)
    name = str(spacing).lower()
    if name in RULES:
        return name
    if name in SPACINGS:
        return SPACINGS[name]
    if isinstance(spacing, str) and is_placed(spacing):
        return Placed.load(spacing)
    names = ", ".join([*SPACINGS, *RULES])
    raise ValueError(
        f"grid: unknown spacing {spacing!r}; choose one of {names}, or give a file of nodes"
    )


Map = Callable[[Float], Float]

# From lam to the spaced variable, and back.
TRANSFORMS: dict[Variable, tuple[Map, Map]] = {
    "lam": (np.positive, np.positive),
    "nsr": (lambda lam: np.exp(-lam), lambda y: -np.log(y)),
    "flow_sigma": (lambda lam: np.exp(-softplus(lam)), lambda y: np.log1p(-y) - np.log(y)),
}
