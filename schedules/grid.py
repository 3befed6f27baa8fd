"""The nodes of one run: where the network is asked, and where the sample ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Float, Schedule
from .edm import EDM

# Where the sample ends: in clean data, or at the least noise that the network knows.
End = Literal["zero", "min"]
COLUMNS = ("time", "alpha", "sigma", "lam", "label", "stage")


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One node of a grid, as a denoiser sees it: plain floats, and the node that follows.

    `stage` and `schedule` are those of the grid; `next` is None on the last node.
    """

    index: int
    time: float
    alpha: float
    sigma: float
    lam: float
    label: float
    stage: bool
    schedule: Schedule | None
    next: Node | None

    def __repr__(self) -> str:
        levels = f"alpha={self.alpha:.6g}, sigma={self.sigma:.6g}"
        return f"Node({self.index}, time={self.time:.6g}, {levels})"


@dataclass(frozen=True, eq=False)
class Grid:
    """N + 1 nodes from noise to data, as a value; all arrays are float64 [N + 1] and read-only.

    `time`, `alpha`, `sigma`, `lam` and `label` belong together: x_t = alpha x0 + sigma eps,
    lam = log(alpha / sigma) (+inf where sigma is 0, -inf where alpha is 0), and `label` is what the
    network is told. The last node is where the sample ends; no network is asked there.

    `stage` marks nodes inside a step of a singlestep solver. They may repeat or go back in time;
    all other nodes must have strictly rising lam, or ValueError names the offenders. `schedule` is
    the law the nodes came from, for solvers that need points between them (None if unknown).
    """

    time: Float
    alpha: Float
    sigma: Float
    lam: Float
    label: Float
    stage: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        size = np.shape(self.time)
        if self.stage.size == 0:
            object.__setattr__(self, "stage", np.zeros(size, dtype=bool))
        for column in COLUMNS:
            value = np.array(getattr(self, column), dtype=bool if column == "stage" else float)
            value.flags.writeable = False
            object.__setattr__(self, column, value)
            if value.shape != size or value.ndim != 1:
                raise ValueError(f"grid: {column} has shape {value.shape}, time has {size}")
            if np.isnan(value).any():
                raise ValueError(f"grid: {column} is NaN at node {int(np.isnan(value).argmax())}")
        if len(self.time) < 2:
            raise ValueError(f"grid: at least 2 nodes are needed (nfe >= 1), got {len(self.time)}")
        if self.stage[0] or self.stage[-1]:
            raise ValueError("grid: the first and the last node cannot be stages of a step")
        with np.errstate(divide="ignore", invalid="ignore"):
            derived = np.log(self.alpha) - np.log(self.sigma)
            # Equal infinities differ by NaN; float32 levels agree to 1e-6.
            wrong = ~(np.abs(derived - self.lam) <= 1e-5 * (1 + np.abs(self.lam)))
        wrong &= derived != self.lam
        if wrong.any():
            k = int(wrong.argmax())
            raise ValueError(
                f"grid: node {k} has lam {self.lam[k]:.6g}, but its alpha {self.alpha[k]:.6g} and "
                f"sigma {self.sigma[k]:.6g} make it {derived[k]:.6g}"
            )
        if np.isposinf(self.lam[:-1]).any():
            k = int(np.isposinf(self.lam).argmax())
            raise ValueError(
                f"grid: node {k} is already clean (sigma = 0) but is not the last node"
            )
        steps = np.flatnonzero(~self.stage)
        # Two nodes at lam = -inf differ by NaN, which also fails this test.
        with np.errstate(invalid="ignore"):
            bad = ~(np.diff(self.lam[steps]) > 0)
        if bad.any():
            a, b = steps[int(bad.argmax())], steps[int(bad.argmax()) + 1]
            relation = "repeats" if self.lam[a] == self.lam[b] else "is noisier than"
            here, there = (f"time {self.time[k]:.6g}, lam {self.lam[k]:.6g}" for k in (b, a))
            raise ValueError(
                f"grid: node {b} ({here}) {relation} node {a} ({there}); nodes must run strictly "
                f"from noise to data"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from its columns: the chain of nodes would exhaust the stack of pickle and copy.
        return type(self), (*(getattr(self, column) for column in COLUMNS), self.schedule)

    @cached_property
    def nsr(self) -> Float:
        """Noise-to-signal ratio sigma / alpha; inf at pure noise."""
        return np.exp(-self.lam)

    @property
    def nfe(self) -> int:
        """Number of nodes where a network is asked, N."""
        return len(self.time) - 1

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes one by one, each linked to the next."""
        nodes: list[Node] = []
        for index in reversed(range(len(self.time))):
            values = {column: getattr(self, column)[index].item() for column in COLUMNS}
            following = nodes[-1] if nodes else None
            nodes.append(Node(index=index, **values, schedule=self.schedule, next=following))
        return tuple(reversed(nodes))

    @classmethod
    def from_times(
        cls, schedule: Schedule, times: ArrayLike, stage: ArrayLike | None = None
    ) -> Grid:
        """Nodes at explicit times of `schedule`, N + 1 of them, from noise to data."""
        times = np.asarray(times, dtype=np.float64)
        return cls(
            time=times,
            alpha=schedule.alpha(times),
            sigma=schedule.sigma(times),
            lam=schedule.lam(times),
            label=schedule.label(times),
            stage=np.asarray([] if stage is None else stage, dtype=bool),
            schedule=schedule,
        )

    @classmethod
    def from_lams(cls, schedule: Schedule, lams: ArrayLike, stage: ArrayLike | None = None) -> Grid:
        """Nodes at explicit half log-SNRs of `schedule`, rising, N + 1 of them."""
        return cls.from_times(schedule, schedule.time(lams), stage)

    @classmethod
    def from_sigmas(cls, sigmas: ArrayLike, schedule: Schedule | None = None) -> Grid:
        """Nodes at explicit noise-to-signal ratios sigma / alpha, falling, N + 1 of them.

        Without a schedule they are in EDM form: alpha = 1 and sigma is as given. The sigmas of a
        flow are no ratios: give them to `from_times` as times of FlowMatching(shift=1).
        """
        sigmas = np.asarray(sigmas, dtype=np.float64)
        if not (np.isfinite(sigmas) & (sigmas >= 0)).all():
            raise ValueError(
                f"from_sigmas: every sigma must be finite and >= 0, got {sigmas.tolist()}"
            )
        if schedule is None:
            return cls.from_times(EDM(), sigmas)
        with np.errstate(divide="ignore"):
            return cls.from_lams(schedule, -np.log(sigmas))

    def with_stages(self, fractions: Sequence[float]) -> Grid:
        """Insert, into every step that does not end in clean data, stages at fractions of its h.

        A step from lam to lam + h gets nodes at lam + r h for r in `fractions`, marked as stages.
        Needs `schedule`, and a first node with some signal (lam > -inf).
        """
        lam, stage = [self.lam[:1]], [[False]]
        for a, b in zip(self.lam[:-1], self.lam[1:], strict=True):
            inside = [a + r * (b - a) for r in fractions] if np.isfinite(b - a) else []
            lam.append(np.array([*inside, b]))
            stage.append([*[True] * len(inside), False])
        return self.with_nodes(np.concatenate(lam), np.concatenate(stage))

    def with_nodes(self, lam: Float, stage: ArrayLike) -> Grid:
        """These nodes, with the stages given; those at a lam of this grid are taken over unchanged.

        Others come from `schedule`, which is needed only if there are any.
        """
        where = np.searchsorted(self.lam, lam).clip(max=self.nfe)
        known = self.lam[where] == lam
        stage = np.asarray(stage, dtype=bool)
        if known.all():
            return self.select(where.tolist(), stage.tolist())
        fresh = Grid.from_lams(self.require_schedule(), lam, stage)
        columns = {
            name: np.where(known, getattr(self, name)[where], getattr(fresh, name))
            for name in COLUMNS[:-1]
        }
        return Grid(**columns, stage=stage, schedule=self.schedule)

    def with_times(self, times: ArrayLike) -> Grid:
        """These nodes at other times of `schedule`, N + 1; those that stay keep their numbers."""
        fresh = Grid.from_times(self.require_schedule(), times, self.stage)
        stay = fresh.time == self.time
        columns = {
            name: np.where(stay, getattr(self, name), getattr(fresh, name)) for name in COLUMNS[:-1]
        }
        return replace(self, **columns)

    def select(self, index: Sequence[int], stage: Sequence[bool]) -> Grid:
        """The nodes `index`, in that order and possibly repeated, with new stage marks."""
        nodes = {column: getattr(self, column)[list(index)] for column in COLUMNS[:-1]}
        return Grid(**nodes, stage=np.asarray(stage), schedule=self.schedule)

    def tail(self, start: int) -> Grid:
        """The nodes from `start` on: the rest of a run that begins there."""
        return self.select(range(start, len(self.time)), self.stage[start:].tolist())

    def require_schedule(self) -> Schedule:
        """The schedule, or ValueError when the grid came from numbers alone."""
        if self.schedule is None:
            raise ValueError(
                "this solver needs points between the nodes, and this grid does not know its "
                "noise schedule: build it with schedules.grid or Grid.from_sigmas(.., schedule)"
            )
        return self.schedule
