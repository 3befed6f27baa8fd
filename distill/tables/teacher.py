"""What a table learns from: trajectories of a better sampler on many nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...samplers.fit import Trajectories
from ...schedules import Grid


@dataclass(frozen=True, eq=False)
class Teacher:
    """Trajectories of a sampler through the T + 1 nodes of `grid`.

    A student's nodes are some of these. It begins at a node as noise alone, sigma z, also where the
    teacher has come a part of its way: how much it loses by that is for the fit to see.
    """

    grid: Grid
    batches: tuple[Trajectories, ...]

    def trajectories(self, places: Sequence[int]) -> tuple[Grid, list[Trajectories]]:
        """The grid of the nodes `places` and of the end, and what a student is to meet there."""
        chosen = [*places, self.grid.nfe]
        grid = self.grid.select(chosen, [False] * len(chosen))
        met = [
            replace(batch, states=[batch.states[place - 1] for place in chosen[1:]])
            for batch in self.batches
        ]
        return grid, met

    def part(self, first: int, last: int | None = None) -> Teacher:
        """Some of the batches."""
        return Teacher(self.grid, self.batches[first:last])
