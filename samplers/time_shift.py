"""Time shift: what the variance of a state says of its time is believed, rather than the clock.

Errors leave a state too noisy for its time, or not noisy enough; then it is like those of another
time, at which the network knows it better (Li et al. 2024, "Alleviating Exposure Bias in Diffusion
Models through Sampling with Shifted Time Steps", algorithm 3 and theorem 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from ..schedules import Grid, VPDiscrete
from ..schedules.grid import Node
from .denoiser import several
from .executor import State
from .guidance import Ask, Guided
from .matching import Window, sample_variance, warn_if_flat
from .program import Step
from .recall import Denoiser
from .registry import build
from .spans import Mode, Span, check_apart, places_of, span_of
from .sums import Coefficient, mix
from .tableau import Tableau

# Where a state remembers the times of its samples, [B, N + 1] on the CPU.
MEMORY = "time_shift"


class Shifted(NamedTuple):
    """A row at the times of one sample: its node, and coefficients of all that is at hand."""

    node: Node
    of_x: Coefficient
    of_x0: Coefficient
    carry: Coefficient
    weights: list[float]
    noise: list[float]


@dataclass(frozen=True, eq=False)
class TimeShift:
    """A `row_map` that shifts times by the variance of each sample; made by `time_shift`.

    `table` is the one to run with it: that of the solver on the grid as it is.
    """

    solver: Callable[[Grid], Tableau]
    grid: Grid
    window: float
    cutoff: float
    mode: Mode
    data_variance: float
    resolution: float
    table: Tableau = field(init=False)
    # For each node of the grid the times it may be shifted to; for each row what of it may move.
    windows: tuple[Window | None, ...] = field(init=False, repr=False)
    spans: tuple[Span | None, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        for name in ("window", "data_variance", "resolution"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"time_shift: {name} must be 0 or more, not {getattr(self, name)}")
        warn_if_flat(self.grid.require_schedule(), self.data_variance)
        table = self.solver(self.grid).numeric()
        if table.bias.any():
            raise ValueError(f"time_shift: {table!r} has a bias, which would not follow its times")
        places = places_of(self.grid, table)
        windows = tuple(
            Window.around(self.grid, k, self.window, self.data_variance, self.resolution)
            if 0 < k < self.grid.nfe and not table.grid.stage[place] and label > self.cutoff
            else None
            for k, (place, label) in enumerate(zip(places, self.grid.label, strict=True))
        )
        # A window of one time, the node's own, moves nothing.
        windows = tuple(each if each and np.ptp(each.times) > 0 else None for each in windows)
        check_apart(self.grid, windows)
        spans = [span_of(table, places, n, self.mode) for n in range(table.grid.nfe)]
        moving = tuple(
            span if span is not None and any(windows[span.low : span.high + 1]) else None
            for span in spans
        )
        for name, value in (("table", table), ("windows", windows), ("spans", moving)):
            object.__setattr__(self, name, value)

    def __call__(self, state: State, row: Step) -> tuple[State, Step]:
        """The row at the times of the samples of x, [B, ...]; the row itself where none may move.

        Raises ValueError for a row of another table, and for samples of a single number.
        """
        n, x = state.step, state.x
        check_same(row, self.table, n)
        span = self.spans[n]
        if span is None or len(x) == 0:
            return state, row
        times = state.memory.get(MEMORY)
        if times is None:
            times = torch.tensor(self.grid.time).expand(len(x), -1)
        candidates = self.windows[span.high]
        if span.first and candidates is not None:
            times = times.clone()
            times[:, span.high] = torch.from_numpy(candidates.match(sample_variance(x)))
            state = replace(state, memory={**state.memory, MEMORY: times})
        keys, which = np.unique(
            times[:, span.low : span.high + 1].numpy(), axis=0, return_inverse=True
        )
        rows = [shifted(self, n, span.low, tuple(key)) for key in keys.tolist()]
        each = [rows[i] for i in which.ravel()]
        if self.mode == "model":
            return state, asked_at(row, several([one.node for one in each], x))
        # Tensors also where samples agree, so that what one gets does not depend on the others.
        row = row._replace(
            carry=batch([one.carry for one in each], x),
            weights=terms([one.weights for one in each], x),
            noise=terms([one.noise for one in each], x),
        )
        if self.mode == "source" or not span.first:
            row = row._replace(
                node=several([one.node for one in each], x),
                of_x=batch([one.of_x for one in each], x),
                of_x0=batch([one.of_x0 for one in each], x),
            )
        return state, row


def time_shift(
    solver: str | Callable[[Grid], Tableau],
    grid: Grid,
    window: float,
    cutoff: float,
    mode: Mode = "source",
    *,
    data_variance: float = 0.0,
    resolution: float | None = None,
) -> TimeShift:
    """The `row_map` of the Time-Shift Sampler, for `sample` with its `table`.

    At node n, at label t above `cutoff`, the variance of each sample over its entries (unbiased,
    the mean removed) is compared with V(tau) = alpha_tau^2 data_variance + sigma_tau^2, and the
    nearest tau of [t - window / 2, t + window / 2] is the sample's time. The first node never
    moves, nor do stages inside steps, nor the last node.

    - "source" (algorithm 3): the sample is at tau: the network is asked there and the step starts
      there. Row n is that of the solver on the times that the sample was given so far, and those of
      the grid from there on.
    - "model": the network is asked at tau; its eps is used at the levels of the grid.
    - "destination": the state at t_n is compared around t_{n+1}, and the step goes to tau. The next
      one starts from the grid's time all the same, as do the stages after it. In a state with more
      noise than its goal, tau is the most noise of the window.

    The number of evaluations is that of the bare solver, and window 0 is that solver bit for bit.
    Every shifted step reads the device once and builds a table for each history of times that is
    new, so such a run can be neither captured nor compiled.

    Parameters
    ----------
    solver
        A name, or a function from a grid to its table.
    grid
        Of a known schedule; the solver's.
    window, cutoff
        In labels: time steps for networks with 1000 of them. See `suggest_time_shift`.
    mode
        What is shifted.
    data_variance
        Of the entries of a sample, the mean over the data; 0 is the paper's rule, which is right
        where there is much more noise than data. Of data of unit variance the variance of a state
        says nothing in a variance-preserving form; there is a warning.
    resolution
        Distance of candidates from each other and from t in labels, 1 in the paper, 0 for all
        between; by default 1 for VPDiscrete and 0 for others. Of two as near it is the lower.

    Raises
    ------
    ValueError
        For negative numbers, a grid without a schedule, windows of neighbours that overlap, and
        tables with a bias or coefficients per pixel.
    """
    if resolution is None:
        resolution = 1.0 if isinstance(grid.schedule, VPDiscrete) else 0.0
    make = partial(build, solver) if isinstance(solver, str) else solver
    return TimeShift(make, grid, window, cutoff, mode, data_variance, resolution)


def scale_eps(denoiser: Denoiser, base: float = 1.0, slope: float = 0.0) -> Denoiser:
    """Epsilon scaling: eps / (base + slope n) at node n, such as base 1.0012, or 1 + slope n.

    In x0 with a factor f: x0' = x0 / f + (1 - 1 / f) x / alpha. Against networks whose noise is
    systematically too large (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion
    Models"). Raises ValueError at pure noise, where eps says nothing about x0.
    """
    if (base, slope) == (1, 0):
        return denoiser

    def rule(ask: Ask) -> Tensor:
        node, x0 = ask.node, ask(denoiser)
        factor, alpha = base + slope * node.index, cast(Any, node.alpha)
        if factor == 1:
            return x0
        if not isinstance(alpha, Tensor) and alpha == 0:
            raise ValueError(f"scale_eps: node {node.index} is pure noise, eps says nothing there")
        return mix(ask.x, (1 - 1 / factor) / alpha, x0, 1 / factor)

    return Guided(rule)


@lru_cache(maxsize=4096)
def shifted(shift: TimeShift, n: int, low: int, times: tuple[float, ...]) -> Shifted:
    """Row n of the solver on the grid with its nodes from `low` on at `times`."""
    every = shift.grid.time.copy()
    every[low : low + len(times)] = times
    table = shift.solver(shift.grid.with_times(every))
    own, row = shift.table.steps[n], table.steps[n]
    before = shift.table.steps[n - 1] if n else None
    outputs, noises = (before.live, before.live_noise) if before else ((), ())
    weights = table.weights[n, [*outputs, *[n] * own.call]]
    noise = table.noise[n, [*noises, *[n] * own.draws]]
    if np.count_nonzero(weights) < np.count_nonzero(table.weights[n]):
        raise ValueError(f"time_shift: at other times, row {n} of {table!r} uses other outputs")
    return Shifted(row.node, row.of_x, row.of_x0, row.carry, weights.tolist(), noise.tolist())


def asked_at(row: Step, node: Node) -> Step:
    """The row with its network asked at another node, whose eps is taken for that of its own.

    x0' of the node is eps = (x - alpha' x0') / sigma', and this is x0 = (x - sigma eps) / alpha.
    """
    alpha, ratio = row.node.alpha, row.node.sigma / node.sigma
    of_x = row.of_x + row.of_x0 * (1 - ratio) / alpha
    return row._replace(node=node, of_x=of_x, of_x0=row.of_x0 * ratio * node.alpha / alpha)


def batch(values: Sequence[Coefficient], x: Tensor) -> Tensor:
    """A number for each sample of x, float64 [B, 1, ..]."""
    return torch.tensor(values, dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))


def terms(values: Sequence[Sequence[float]], x: Tensor) -> tuple[tuple[int, Tensor], ...]:
    """Positions and coefficients [B, 1, ..] of those of each sample."""
    return tuple((i, batch(each, x)) for i, each in enumerate(zip(*values, strict=True)))


def check_same(row: Step, table: Tableau, n: int) -> None:
    """ValueError unless the row is row n of the table."""
    here, own = (
        (each.node.time, each.live, each.carry, each.weights, each.noise)
        for each in (row, table.steps[n])
    )
    if here != own:
        raise ValueError(f"time_shift: this is not the {table!r} that it was made for; run its own")
