"""A stochastic sampler cut into segments, as the drivers see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..samplers import Denoiser, State, Tableau, advance, initial, noise
from ..samplers.executor import joined
from ..samplers.recall import STREAMS, Memory, recalled
from ..samplers.streams import salted
from ..schedules.grid import Node

# Where a state keeps the prediction of its node, for the step that starts there.
AHEAD = "ahead"
# How good samples are, [B]: of clean data, or of what is predicted of them.
Reward = Callable[[Tensor], Tensor]


@dataclass
class Meter:
    """What was spent: evaluations of the denoiser, one for each sample, and of the reward.

    `watch(meter)` is called after every evaluation.
    """

    evaluations: int = 0
    rewards: int = 0
    watch: Callable[[Meter], None] = lambda meter: None

    def evaluated(self, samples: int) -> None:
        """Count evaluations, and tell who watches."""
        self.evaluations += samples
        self.watch(self)


@dataclass(frozen=True, eq=False)
class Chain:
    """Who runs which rows: `table` in segments that begin at the nodes `levels`.

    `denoiser(size)` is that of a batch of so many samples, which are all of one kind: of one label,
    one prompt. Samples are [B, *shape] and begin as noise at node 0; a denoiser that draws finds
    their streams in memory. `levels` are where a driver looks at states, chooses among them and
    parts their ways; where the first is not node 0, the rows before it belong to the beginning. By
    default they are all nodes between steps from which a step draws noise. At most `batch_size`
    samples are run at once.

    Raises ValueError for a table that draws no noise in one of the segments (see `restarted` for
    deterministic solvers), and for levels that are no nodes between steps, in order.
    """

    table: Tableau
    denoiser: Callable[[int], Denoiser]
    shape: tuple[int, ...]
    levels: tuple[int, ...] = ()
    batch_size: int = 256
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    meter: Meter = field(default_factory=Meter)

    def __post_init__(self) -> None:
        table, steps = self.table, [n for n, each in enumerate(self.table.grid.stage) if not each]
        levels = tuple(self.levels) or tuple(
            first for first, last in pairwise(steps) if self.draws(first, last)
        )
        object.__setattr__(self, "levels", levels)
        if list(levels) != sorted({*levels}) or not {*steps[:-1]}.issuperset(levels):
            raise ValueError(
                f"levels must rise, and be nodes between steps of the {table.grid.nfe} of "
                f"{table.name}, not {list(levels)}"
            )
        pairs = list(zip(levels, self.ends, strict=True)) if levels else [(0, table.grid.nfe)]
        silent = [pair for pair in pairs if not self.draws(*pair)]
        if silent:
            first, last = silent[0]
            raise ValueError(
                f"{table.name} draws no noise between nodes {first} and {last}: all that begin "
                "there end in one place; take a stochastic solver or `restarted`, and other levels"
            )

    def calls(self, level: int) -> int:
        """Evaluations of one sample in one segment."""
        return sum(row.call for row in self.table.steps[self.levels[level] : self.ends[level]])

    def cost(self, looked_at: bool = False) -> int:
        """Evaluations of one whole run.

        One that is looked at on its levels costs one more where no step begins with that
        evaluation.
        """
        rows = self.table.steps
        extra = sum(not rows[level].call for level in self.levels[1:]) if looked_at else 0
        return self.table.nfe + extra

    def draws(self, first: int, last: int) -> bool:
        """Whether any of the rows draws noise."""
        return any(row.draws for row in self.table.steps[first:last])

    @property
    def ends(self) -> tuple[int, ...]:
        """Where the segments end."""
        return (*self.levels[1:], self.table.grid.nfe)

    @property
    def depth(self) -> int:
        """How many segments there are."""
        return len(self.levels)

    def begin(self, seeds: Sequence[int]) -> State:
        """The states at the first level, from noise at node 0 by seed."""
        x = noise(self.table.grid, self.shape, seeds, dtype=self.dtype, device=self.device)
        streams = torch.tensor([seed % 2**63 for seed in seeds])
        state = replace(initial(self.table, x, seeds), memory={STREAMS: streams})
        return self.run(state, self.levels[0])

    def run(self, state: State, rows: int) -> State:
        """So many rows, in batches."""
        with torch.no_grad():
            parts = [
                advance(part, self.metered(len(part.x)), self.table, rows)
                for part in self.split(state)
            ]
        return joined(parts)

    def split(self, state: State) -> list[State]:
        """A state in batches."""
        rows = self.batches(len(state.x))
        return [state] if len(rows) == 1 else [state.take(each) for each in rows]

    def move(self, state: State, level: int, seeds: Sequence[int]) -> State:
        """The states at the end of a segment, each by the noise of its seed.

        What was predicted ahead at its first node is not predicted again.
        """
        if state.step != self.levels[level]:
            raise ValueError(f"states at node {state.step} do not begin segment {level}")
        return self.run(state.reseed(seeds), self.ends[level] - self.levels[level])

    def finish(self, state: State, level: int, seeds: Sequence[int]) -> State:
        """The states at node N, from the beginning of a segment."""
        for each in range(level, self.depth):
            state = self.move(state, each, [child(seed, each) for seed in seeds])
        return state

    @torch.no_grad()
    def predict(self, state: State) -> tuple[Tensor, State]:
        """x0 at the node of a state, and the state that remembers it: one evaluation each.

        Where the row there asks the network, that is not done again.
        """
        if state.step == self.table.grid.nfe:
            return state.x, state
        node = self.table.grid.nodes[state.step]
        found = [
            self.metered(len(part.x)).recall(part.x, node, part.memory)
            for part in self.split(state)
        ]
        x0 = torch.cat([each for each, _ in found])
        if not self.table.steps[state.step].call:
            # What is next asked is another state.
            return x0, state
        memory = {name: torch.cat([each[name] for _, each in found]) for name in found[0][1]}
        return x0, replace(state, memory={**memory, AHEAD: x0})

    def reward_of(self, reward: Reward, x0: Tensor) -> Tensor:
        """The rewards of samples, float64 [B] on the CPU.

        ValueError for another shape, and for what is not finite: of a constraint take a number that
        is far below all others for what breaks it.
        """
        self.meter.rewards += len(x0)
        with torch.no_grad():
            parts = [reward(x0[rows.start : rows.stop]) for rows in self.batches(len(x0))]
        return checked(torch.cat(parts), len(x0))

    def batches(self, size: int) -> list[range]:
        """The rows of a batch in parts."""
        step = self.batch_size
        return [range(first, min(first + step, size)) for first in range(0, size, step)]

    def metered(self, size: int) -> Metered:
        """The denoiser of a batch, which counts, and takes what was predicted ahead."""
        return Metered(self.denoiser(size), self.meter)

    @contextmanager
    def spent(self) -> Iterator[Meter]:
        """What is spent inside."""
        before = (self.meter.evaluations, self.meter.rewards)
        found = Meter()
        yield found
        found.evaluations = self.meter.evaluations - before[0]
        found.rewards = self.meter.rewards - before[1]


@dataclass(frozen=True, eq=False)
class Metered:
    """A denoiser that counts its samples, and answers with what was predicted ahead."""

    denoiser: Denoiser
    meter: Meter

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Predict clean data."""
        return self.recall(x, node, {})[0]

    def recall(self, x: Tensor, node: Node, memory: Memory) -> tuple[Tensor, Memory]:
        """Predict clean data, or take what was."""
        if AHEAD in memory:
            return memory[AHEAD], {k: v for k, v in memory.items() if k != AHEAD}
        self.meter.evaluated(len(x))
        return recalled(self.denoiser, x, node, memory)


def checked(values: Tensor, count: int) -> Tensor:
    """Rewards as float64 [count] on the CPU; see `Chain.reward_of`."""
    if values.shape != (count,):
        raise ValueError(f"a reward is one number a sample, [{count}], not {list(values.shape)}")
    found = values.detach().double().cpu()
    if not found.isfinite().all():
        bad = found[~found.isfinite()][0].item()
        raise ValueError(
            f"a reward is {bad}: rewards are finite; for what is not to be, take a number that is "
            "far below all others"
        )
    return found


def child(seed: int, *place: int) -> int:
    """The seed of what comes after `seed` at a place; others for all others, below 2^63."""
    return salted([seed], ",".join(map(str, place)))[0] >> 1
