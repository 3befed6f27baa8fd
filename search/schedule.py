"""A solver schedule: a sampler as the decisions of each of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np

from ..samplers import Tableau
from ..samplers.basis import convert
from ..samplers.kernels import interpolate, kernel, moments
from ..samplers.relations import eliminate
from ..schedules import Grid, Schedule
from ..schedules.base import Float

Prediction = Literal["x0", "eps"]
Remedy = Literal["bh1", "bh2", "exp", "-exp"]
# A number c relaxes by 1 + c h, so that 0 is none.
Relaxation = float | Remedy
REMEDIES: tuple[Remedy, ...] = get_args(Remedy)


@dataclass(frozen=True)
class Update:
    """A Taylor rule about an output: x_t = a x_s + S sum_{k < order} mu_k r_k (h^k / k!) d_k.

    a, S and the moments mu_k are those of `samplers.kernels`, d_0 = m_s. States and outputs are
    counted back from the newest, which is 0; for a corrector that is the one at the target.

    `start` is s: 0 in a multistep solver, more in a singlestep one. `estimates[k-1]` are the
    outputs A that estimate the derivative of order k: d_k = sum_{a in A} c_a (m_a - m_s) with
    sum_a c_a (lam_a - lam_s)^p / p! = [p = k] for p = 1 .. |A|. With |A| < order - 1 it is a
    low-order difference. r_1 is `relaxation`, all other r_k are 1: for a number c it is 1 + c h,
    for "exp" and "-exp" 1 +- (e^z - 1) / 2, z = h for eps and -h for x0; "bh2" makes mu_1 into
    mu_0 / 2 and "bh1" into y / 2, the B(h) of UniPC.

    Raises ValueError for estimates that do not determine their derivative, and for a relaxation
    where there is no first derivative (Liu et al. 2023, "A Unified Sampling Framework for Solver
    Searching of Diffusion Probabilistic Models", section 3).
    """

    start: int = 0
    estimates: tuple[tuple[int, ...], ...] = ()
    relaxation: Relaxation = 0.0

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"update: start counts states back from 0, got {self.start}")
        for k, points in enumerate(self.estimates, 1):
            if len(points) < k or len({*points, self.start}) <= len(points) or min(points) < 0:
                raise ValueError(
                    f"update: the derivative of order {k} needs at least {k} different outputs, "
                    f"counted back from 0 and not the start ({self.start}); got {points}"
                )
        named = isinstance(self.relaxation, str)
        if self.relaxation not in REMEDIES if named else not isfinite(float(self.relaxation)):
            raise ValueError(
                f"update: relaxation is a finite number or one of {', '.join(REMEDIES)}, got "
                f"{self.relaxation!r}"
            )
        if self.relaxation != 0 and not self.estimates:
            raise ValueError(
                f"update: an update of order 1 has no derivative to relax by {self.relaxation!r}"
            )

    @property
    def order(self) -> int:
        """The order of the Taylor rule: derivatives, and the output itself."""
        return 1 + len(self.estimates)

    @property
    def points(self) -> frozenset[int]:
        """All outputs in use."""
        return frozenset([self.start, *(each for points in self.estimates for each in points)])


@dataclass(frozen=True)
class Step:
    """From one time to the next: what is expanded, the predictor, and the corrector if any.

    A corrector reuses the output at the predicted state; with `again` the network is asked once
    more, at the corrected state, and that output replaces the other. Raises ValueError for `again`
    without a corrector.
    """

    prediction: Prediction = "x0"
    predictor: Update = Update()
    corrector: Update | None = None
    again: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"step: prediction is x0 or eps, got {self.prediction!r}")
        if self.corrector is None and self.again:
            raise ValueError("step: only a corrected state is evaluated again; give a corrector")
        if self.corrector is not None and self.corrector.start == 0:
            raise ValueError(
                "step: a corrector starts at a state before its target, at 1 or more; got start 0"
            )


@dataclass(frozen=True)
class SolverSchedule:
    """N steps through N + 1 falling times, from noise to data.

    With `free_start` the first output is not asked for but taken as x0 = 0 (analytic first step).
    The mean of the data may take its place: that is the same sampler on centred data, on states
    x - alpha mean and outputs x0 - mean.

    Raises ValueError naming the step for a rule that reaches behind the first output, or that does
    not use the newest one, which nothing else would then.
    """

    times: tuple[float, ...]
    steps: tuple[Step, ...]
    free_start: bool = False

    def __post_init__(self) -> None:
        n = len(self.steps)
        if n == 0 or len(self.times) != n + 1:
            raise ValueError(f"solver schedule: {n} steps and {len(self.times)} times, not N + 1")
        if not (np.diff(self.times) < 0).all():
            raise ValueError(f"solver schedule: times must fall, got {list(self.times)}")
        if self.steps[-1].corrector is not None:
            raise ValueError("solver schedule: the last step has no output to correct with")
        if self.nfe < 1:
            raise ValueError("solver schedule: one step with a free start asks no network")
        for k, step in enumerate(self.steps):
            for what, rule, known in (
                ("predictor", step.predictor, k + 1),
                ("corrector", step.corrector, k + 2),
            ):
                if rule is None:
                    continue
                if max(rule.points) >= known:
                    raise ValueError(
                        f"solver schedule: the {what} of step {k} uses output {max(rule.points)} "
                        f"before the newest, and there are {known} in all"
                    )
                if 0 not in rule.points:
                    raise ValueError(
                        f"solver schedule: the {what} of step {k} does not use the newest output"
                    )

    @property
    def nfe(self) -> int:
        """Network evaluations: one a step, one more where it is asked again, one less if free."""
        return len(self.steps) + sum(step.again for step in self.steps) - self.free_start

    def tableau(self, law: Schedule, name: str = "schedule") -> Tableau:
        """The tableau, in x0, on the noise schedule `law`, whose times these are.

        Outputs in eps are (x - alpha x0) / sigma with the state x that the network was given; a
        reused corrector moves the state after that, which only changes the rows that follow. Nodes
        that no step starts from are stages of the grid.

        Raises ValueError naming the node for a rule of higher order where the half log-SNR is
        infinite: into clean data, or through an output at pure noise.
        """
        times, stage = self.nodes()
        grid = Grid.from_times(law, times, stage)
        rows: list[Float] = []
        # What the last output at each time, and each state, are: a node; a sum of x and m.
        asked, states = [0], [unit(grid.nfe, 0)]
        for step in self.steps:
            into = len(rows) + 1
            rows.append(applied(step.predictor, step.prediction, grid, asked, states, into))
            if into == grid.nfe:
                break
            asked.append(into)
            states.append(unit(grid.nfe, into))
            if step.corrector is None:
                continue
            moved = applied(step.corrector, step.prediction, grid, asked, states, into)
            if step.again:
                rows.append(moved)
                asked[-1], moved = into + 1, unit(grid.nfe, into + 1)
            states[-1] = moved
        before, outputs = np.hsplit(np.stack(rows), 2)
        if self.free_start:
            outputs[:, 0] = 0
        # Every rule leaves x = sigma eps as it is, which says without cancellation what is carried.
        carry = grid.sigma[1:] / grid.sigma[:-1]
        np.fill_diagonal(before, 0)
        np.fill_diagonal(before, carry - before @ grid.sigma[:-1] / grid.sigma[:-1])
        weights = eliminate(before, outputs, np.zeros_like(outputs)).weights
        return Tableau(grid, carry, weights, name=name)

    def nodes(self) -> tuple[list[float], list[bool]]:
        """The times at which states are made, and which of these are stages."""
        times, stage = [self.times[0]], [False]
        for k, time in enumerate(self.times[1:], 1):
            if self.steps[k - 1].again:
                times.append(time)
                stage.append(True)
            times.append(time)
            stage.append(k < len(self.steps) and self.steps[k].predictor.start > 0)
        return times, stage

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SolverSchedule:
        """Inverse of `to_dict`, also through JSON; ValueError for what is no schedule."""
        try:
            steps = tuple(
                Step(
                    each["prediction"],
                    rule(each["predictor"]),
                    None if each["corrector"] is None else rule(each["corrector"]),
                    bool(each["again"]),
                )
                for each in data["steps"]
            )
            times = tuple(float(time) for time in data["times"])
            return cls(times, steps, bool(data["free_start"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"solver schedule: {error!r} in {data}") from error


def rule(data: dict[str, Any]) -> Update:
    """An update from JSON values."""
    estimates = tuple(tuple(int(each) for each in points) for points in data["estimates"])
    return Update(int(data["start"]), estimates, data["relaxation"])


def unit(n: int, k: int) -> Float:
    """The state of node k as a sum of n states and n outputs, [2 n]."""
    return np.eye(1, 2 * n, k)[0]


def applied(
    update: Update,
    prediction: Prediction,
    grid: Grid,
    asked: Sequence[int],
    states: Sequence[Float],
    target: int,
) -> Float:
    """The state that an update makes at node `target`, in states and x0 outputs, [2 N].

    `asked` and `states` belong together, oldest first. Raises ValueError where a rule of higher
    order meets an infinite half log-SNR.
    """
    n = grid.nfe
    newest = len(asked) - 1
    start = asked[newest - update.start]
    state = states[newest - update.start]
    # From the state that the network was given, order 1 is the same in eps, and x0 has all limits.
    plain = not update.estimates and np.array_equal(state, unit(n, start))
    basis = "x0" if plain else prediction
    known = sorted(asked[newest - each] for each in update.points)
    if update.estimates and not np.isfinite(grid.lam[[*known, target]]).all():
        raise ValueError(
            f"solver schedule: the update of order {update.order} to node {target} meets an "
            f"infinite lam: only order 1 starts at pure noise or ends in clean data, and no other "
            f"order uses an output at pure noise"
        )
    linear = kernel(grid.select([start, target], [False, False]), basis)
    weights = np.zeros(n)
    weights[start] = linear.first[0]
    if update.estimates:
        h, scale = linear.h[0], linear.scale[0]
        mu = relaxed(moments(h, update.order, basis), update.relaxation, h, basis)
        for k, points in enumerate(update.estimates, 1):
            used = [start, *(asked[newest - each] for each in points)]
            share = (grid.lam[used] - grid.lam[start]) / h
            weights[used] += scale * interpolate(share, mu[k] * np.eye(len(used))[k])
    p, q = np.zeros(n), np.ones(n)
    if basis != "x0":
        p[known], q[known] = convert(basis, "x0", grid.alpha[known], grid.sigma[known])
    return linear.carry[0] * state + np.hstack([weights * p, weights * q])


def relaxed(mu: Float, relaxation: Relaxation, h: float, prediction: Prediction) -> Float:
    """The moments [order], the second of them relaxed; see `Update`."""
    z = h if prediction == "eps" else -h
    match relaxation:
        case "bh2":
            first = mu[0] / 2
        case "bh1":
            # In eps the moments leave out e^h, which `scale` holds.
            first = h / 2 * (np.exp(-h) if prediction == "eps" else 1)
        case "exp":
            first = mu[1] * (1 + np.expm1(z) / 2)
        case "-exp":
            first = mu[1] * (1 - np.expm1(z) / 2)
        case _:
            first = mu[1] * (1 + float(relaxation) * h)
    return np.concatenate([mu[:1], [first], mu[2:]])
