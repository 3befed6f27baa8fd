"""The solver schedules that a search may visit: drawn, mutated and crossed, always legal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple, get_args

import numpy as np

from ..samplers import Tableau
from ..schedules import Schedule, Spacing
from ..schedules.base import Float
from ..schedules.grid import End
from ..schedules.spacing import SPACINGS
from .repair import Correction, apart, correction_of, stepped, trimmed
from .ruler import Ruler
from .schedule import REMEDIES, Prediction, Relaxation, SolverSchedule, Step, Update

# How often orders 1, 2, .. are drawn, as in the released search of USF.
ORDERS = (0.2, 0.4, 0.3, 0.1)
# How often a schedule of too large a gain is made again; with the default gain a few times do.
TRIES = 50


class Parts(NamedTuple):
    """What schedules hand on: marks of the times that steps start from, steps, free start, end."""

    marks: Float
    steps: list[Step]
    free: bool
    end: End


@dataclass(frozen=True)
class Space:
    """Solver schedules of exactly `nfe` evaluations on the noise schedule `law`.

    They start at t_max, or up to where lam is `late`, if noise alone stands for the state there;
    they end in clean data or at t_min, which is one of `ends`. Times lie on `marks`
    equal parts of the way that `spacing` measures (see `Ruler`), so that schedules meet at the same
    times, where one network evaluation may serve several. Each step chooses one of
    `predictions`, an order up to `order`, one of `starts` (0 multistep), which outputs estimate
    each derivative, a relaxation, and one of `corrections`, whose rule is `presets.correcting`; a
    schedule chooses one of `free_starts`. What is named twice is drawn twice as often. Where
    another evaluation at the same time is one too many, a step does without. `gain` is the most
    that the absolute weights of a row of the table may add up to, by which errors of the outputs
    are multiplied: a schedule of more is made again. `rate` is how often a mutation changes a time
    or a step, and `width` by how much of the way it moves a time.

    Parents from elsewhere, such as presets, are brought into the space by what they pass on.
    All methods draw from the generator that they are given, and from nothing else. Raises
    ValueError for a budget below 1 and for choices that leave no schedule.
    """

    law: Schedule
    nfe: int
    spacing: Spacing = SPACINGS["karras"]
    ends: tuple[End, ...] = ("zero", "zero", "min")
    late: float | None = None
    marks: int = 128
    predictions: tuple[Prediction, ...] = ("x0", "eps")
    order: int = 4
    starts: tuple[int, ...] = (0, 0, 0, 1, 2)
    corrections: tuple[Correction, ...] = ("none", "none", "reuse", "reuse", "again")
    free_starts: tuple[bool, ...] = (False,)
    gain: float = 20.0
    rate: float = 0.3
    width: float = 0.03

    def __post_init__(self) -> None:
        if self.nfe < 1 or not 1 <= self.order <= len(ORDERS):
            raise ValueError(
                f"space: nfe must be at least 1 and order from 1 to {len(ORDERS)}, got {self.nfe} "
                f"and {self.order}"
            )
        if self.marks <= self.nfe + 1:
            raise ValueError(
                f"space: {self.marks} marks are too few for the times of {self.nfe} evaluations"
            )
        for what, chosen, known in (
            ("ends", self.ends, get_args(End)),
            ("predictions", self.predictions, get_args(Prediction)),
            ("corrections", self.corrections, get_args(Correction)),
        ):
            if not chosen or not {*chosen} <= {*known}:
                raise ValueError(f"space: {what} are some of {', '.join(known)}, got {chosen}")
        if not self.free_starts or 0 not in self.starts or min(self.starts) < 0:
            raise ValueError(
                "space: a choice of free_starts is needed, and of starts 0, which the first step "
                f"takes; got {self.free_starts} and {self.starts}"
            )
        if not 0 <= self.rate <= 1 or not self.width >= 0 or not self.gain >= 1:
            raise ValueError(
                f"space: rate is a probability, width at least 0 and gain at least 1, got "
                f"{self.rate}, {self.width} and {self.gain}"
            )
        if self.late is not None and not self.late < 0:
            raise ValueError(
                f"space: late is a lam below 0, of more noise than data, got {self.late}"
            )
        # For its errors, which should not wait for the first schedule.
        Ruler(self.law, self.spacing)

    @cached_property
    def ruler(self) -> Ruler:
        """How far a time is from noise to data."""
        return Ruler(self.law, self.spacing)

    @cached_property
    def latest(self) -> int:
        """The mark of the latest start."""
        if self.late is None or self.late <= self.law.lam(self.law.t_max):
            return 0
        return int(self.marks * self.ruler.shares(self.law.time(self.late)))

    @cached_property
    def pure(self) -> bool:
        """Whether the first state is pure noise, whose output no later step can use."""
        return bool(np.isneginf(self.law.lam(self.law.t_max)))

    def drawn(self, rng: np.random.Generator) -> SolverSchedule:
        """A random schedule: gaps of a Dirichlet law, bent to either end, and random steps."""
        return self.tame(lambda: self._drawn(rng))

    def mutated(self, schedule: SolverSchedule, rng: np.random.Generator) -> SolverSchedule:
        """A neighbour: some times moved, some steps changed, at times one taken out or put in.

        What the budget then lacks is drawn, and what is too much is taken out at random.
        """
        return self.tame(lambda: self._mutated(schedule, rng))

    def crossed(
        self, one: SolverSchedule, other: SolverSchedule, rng: np.random.Generator
    ) -> SolverSchedule:
        """A child: the number of steps of one parent, and what else there is of either.

        Times are taken in one piece up to some step from one parent and then from the other, or
        all from one; each step's prediction, predictor and correction are from the steps of either
        parent that are as far on their way.
        """
        return self.tame(lambda: self._crossed(one, other, rng))

    def table(self, schedule: SolverSchedule) -> Tableau:
        """The tableau of a schedule of this space; of the last thousand it is made once."""
        return table_of(schedule, self.law)

    def tame(self, make: Callable[[], SolverSchedule]) -> SolverSchedule:
        """The first of what `make` gives within `gain`; of `TRIES` the one of the least."""
        found = []
        for _ in range(TRIES):
            schedule = make()
            gain = np.abs(self.table(schedule).weights).sum(1).max()
            if gain <= self.gain:
                return schedule
            found.append((gain, schedule))
        return min(found, key=lambda each: each[0])[1]

    def _drawn(self, rng: np.random.Generator) -> SolverSchedule:
        free, end = bool(rng.choice(self.free_starts)), self.ends[rng.integers(len(self.ends))]
        # Half of them start at once.
        first = self.latest / self.marks * max(rng.uniform(-1, 1), 0.0)
        n, spent = 1, 1 - free
        kinds: list[Correction] = []
        while spent < self.nfe:
            lean = spent + 2 > self.nfe
            kinds.append(self.correction(rng, self.lean if lean else self.corrections))
            spent += 2 if kinds[-1] == "again" else 1
            n += 1
        gaps = rng.dirichlet(np.full(n, 4.0))
        way = first + (1 - first) * np.cumsum([0.0, *gaps])[:-1] ** np.exp(0.3 * rng.normal())
        steps = [self.step(rng, k, n, kind, end) for k, kind in enumerate([*kinds, "none"])]
        return self.assembled(rng, Parts(np.rint(self.marks * way), steps, free, end))

    def _mutated(self, schedule: SolverSchedule, rng: np.random.Generator) -> SolverSchedule:
        marks, steps, free, end = self.parts(schedule)
        moves = np.rint(self.width * self.marks * rng.normal(size=len(marks)))
        marks = marks + moves * (rng.random(len(marks)) < self.rate)
        changed = [
            self.changed(rng, step, k, len(steps), end) if rng.random() < self.rate else step
            for k, step in enumerate(steps)
        ]
        if len(marks) > 1 and rng.random() < self.rate / 2:
            out = int(rng.integers(len(marks) - 1))
            marks = np.delete(marks, out + 1)
            del changed[out]
        if rng.random() < self.rate / 2:
            free = bool(rng.choice(self.free_starts))
        if rng.random() < self.rate / 2:
            end = self.ends[rng.integers(len(self.ends))]
        return self.assembled(rng, Parts(marks, changed, free, end))

    def _crossed(
        self, one: SolverSchedule, other: SolverSchedule, rng: np.random.Generator
    ) -> SolverSchedule:
        first, second = (one, other) if rng.random() < 0.5 else (other, one)
        mine, theirs = self.parts(first), self.parts(second)
        marks = mine.marks
        if len(marks) == len(theirs.marks) and rng.random() < 0.5:
            cut = int(rng.integers(len(marks) + 1))
            marks = np.concatenate([marks[:cut], theirs.marks[cut:]])
        last = max(len(mine.steps) - 1, 1)
        mixed = []
        for k, step in enumerate(mine.steps):
            pair = (step, theirs.steps[round(k * (len(theirs.steps) - 1) / last)])
            a, b, c = (pair[each] for each in rng.integers(2, size=3))
            mixed.append(stepped(a.prediction, b.predictor, correction_of(c)))
        free = (mine if rng.random() < 0.5 else theirs).free
        end = (mine if rng.random() < 0.5 else theirs).end
        return self.assembled(rng, Parts(marks, mixed, free, end))

    def parts(self, schedule: SolverSchedule) -> Parts:
        """What a schedule is made of, on the marks nearest to its times."""
        marks = np.rint(self.marks * self.ruler.shares(schedule.times[:-1]))
        end: End = "zero" if schedule.times[-1] == self.law.t_zero else "min"
        return Parts(marks, [*schedule.steps], schedule.free_start, end)

    @cached_property
    def lean(self) -> tuple[Correction, ...]:
        """The corrections that cost no evaluation; none at all where there is no other."""
        return tuple(each for each in self.corrections if each != "again") or ("none",)

    def correction(self, rng: np.random.Generator, among: tuple[Correction, ...]) -> Correction:
        """A random one of some corrections."""
        return among[rng.integers(len(among))]

    def room(self, k: int, n: int, end: End) -> int:
        """How many outputs step k of n can use."""
        clean = end == "zero" and k == n - 1
        return 1 if clean else max(k + 1 - self.pure, 1)

    def step(self, rng: np.random.Generator, k: int, n: int, kind: Correction, end: End) -> Step:
        """A random step k of n."""
        prediction = self.predictions[rng.integers(len(self.predictions))]
        return stepped(prediction, self.predictor(rng, self.room(k, n, end)), kind)

    def predictor(self, rng: np.random.Generator, room: int) -> Update:
        """A random predictor that uses at most `room` outputs."""
        shares = np.array(ORDERS[: min(self.order, room)])
        order = 1 + int(rng.choice(len(shares), p=shares / shares.sum()))
        if order == 1:
            return Update()
        start = int(rng.choice([each for each in self.starts if each < room]))
        pool = [each for each in range(room) if each != start]
        estimates = []
        for k in range(1, order):
            # Mostly the full difference by the nearest outputs, as solvers have it.
            count = order - 1 if rng.random() < 0.7 else int(rng.integers(k, order))
            near = rng.random() < 0.8
            points = pool[:count] if near else rng.choice(pool, count, replace=False).tolist()
            estimates.append(tuple(sorted(points)))
        made = Update(start, tuple(estimates), self.relaxation(rng))
        return trimmed(made, room, self.order, self.starts)

    def relaxation(self, rng: np.random.Generator) -> Relaxation:
        """A random relaxation: none, linear, or one of the published ones."""
        kind = rng.random()
        if kind < 0.4:
            return 0.0
        return float(0.2 * rng.normal()) if kind < 0.8 else REMEDIES[rng.integers(len(REMEDIES))]

    def changed(self, rng: np.random.Generator, step: Step, k: int, n: int, end: End) -> Step:
        """The step with one of its decisions made anew."""
        kind, update = correction_of(step), step.predictor
        match int(rng.integers(5)):
            case 0:
                drawn = self.predictions[rng.integers(len(self.predictions))]
                return stepped(drawn, update, kind)
            case 1:
                return stepped(step.prediction, update, self.correction(rng, self.corrections))
            case 2 if update.estimates:
                return stepped(
                    step.prediction, replace(update, relaxation=self.relaxation(rng)), kind
                )
            case 3 if update.estimates and isinstance(update.relaxation, float):
                moved = update.relaxation + float(0.05 * rng.normal())
                return stepped(step.prediction, replace(update, relaxation=moved), kind)
        return stepped(step.prediction, self.predictor(rng, self.room(k, n, end)), kind)

    def assembled(self, rng: np.random.Generator, parts: Parts) -> SolverSchedule:
        """The schedule of these parts, made legal, and brought to the budget move by move.

        Too many evaluations: some step is taken out, or an output not asked for again. Too few:
        a time is drawn, with its step. Each move is worth one evaluation.
        """
        end = parts.end if parts.end in self.ends else self.ends[0]
        free = parts.free if parts.free in self.free_starts else self.free_starts[0]
        top = self.marks if end == "zero" else self.marks - 1
        # So late that there is room for the rest.
        first = int(np.clip(parts.marks[0], 0, min(self.latest, top - self.nfe)))
        way, rest = apart(parts.marks[1:], first + 1, top), [*parts.steps]
        while True:
            rest = [self.fitted(rng, step, k, len(rest), end) for k, step in enumerate(rest)]
            over = len(rest) + sum(step.again for step in rest) - free - self.nfe
            if over == 0:
                break
            if over > 0:
                k = int(rng.choice([k for k, s in enumerate(rest) if s.again or k < len(rest) - 1]))
                if rest[k].again:
                    kind = self.correction(rng, self.lean)
                    rest[k] = stepped(rest[k].prediction, rest[k].predictor, kind)
                else:
                    way = np.delete(way, k)
                    del rest[k]
            else:
                new = int(rng.choice(np.setdiff1d(np.arange(first + 1, top + 1), way)))
                k = int(np.searchsorted(way, new))
                way = np.insert(way, k, new)
                kind = self.correction(rng, self.lean)
                rest.insert(k, self.step(rng, k, len(rest) + 1, kind, end))
        start = self.law.t_max if first == 0 else float(self.ruler.times([first / self.marks])[0])
        stop = self.law.t_zero if end == "zero" else self.law.t_min
        times = (start, *self.ruler.times(way / self.marks).tolist(), stop)
        return SolverSchedule(times, tuple(rest), free)

    def fitted(self, rng: np.random.Generator, step: Step, k: int, n: int, end: End) -> Step:
        """The step as it can be at place k of n: in the space, and what it uses is there."""
        kind: Correction = correction_of(step)
        if k == n - 1 or (k == 0 and self.pure):
            kind = "none"
        elif kind not in self.corrections:
            kind = self.correction(rng, self.lean)
        there = step.prediction in self.predictions
        prediction = step.prediction if there else self.predictions[0]
        predictor = trimmed(step.predictor, self.room(k, n, end), self.order, self.starts)
        if predictor == step.predictor and there and kind == correction_of(step):
            return step
        return stepped(prediction, predictor, kind)


@lru_cache(maxsize=1000)
def table_of(schedule: SolverSchedule, law: Schedule) -> Tableau:
    """`SolverSchedule.tableau`, remembered: a child is looked at several times before it is one."""
    return schedule.tableau(law)
