"""The cells of a benchmark: which tables run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import samplers
from ..schedules import Grid, Schedule, grid
from .config import BenchConfig, SolverConfig


@dataclass(frozen=True, eq=False)
class Cell:
    """One solver on one spacing, asked to stay within `nfe`; it takes `table.nfe`."""

    curve: str
    spacing: str
    nfe: int
    table: samplers.Tableau

    @property
    def slug(self) -> str:
        """A file name."""
        return f"{self.curve}-{self.table.nfe:03d}"


def plan(config: BenchConfig, schedule: Schedule) -> list[Cell]:
    """Build the tables of all cells, cheap ones first.

    A solver that cannot spend exactly an NFE gets the largest it can spend below. Where that
    repeats a cell, there is none.
    """
    cells: dict[str, Cell] = {}
    for nfe in config.nfe:
        for solver in config.solvers:
            for spacing in (solver.spacing,) if solver.spacing else config.spacings:
                cell = build_cell(config, schedule, solver, nfe, spacing)
                cells.setdefault(cell.slug, cell)
    return list(cells.values())


def build_cell(
    config: BenchConfig, schedule: Schedule, solver: SolverConfig, nfe: int, spacing: str
) -> Cell:
    """The cell of one solver. Its curve names the spacing where that varies within the run."""

    def make_grid(steps: int) -> Grid:
        return grid(schedule, steps, spacing, end=config.end)

    table = samplers.build_within(solver.name, nfe, make_grid, **solver.options)
    varied = len({*config.spacings, *(s.spacing for s in config.solvers if s.spacing)}) > 1
    label = solver.label or table.name
    return Cell(f"{label}@{spacing}" if varied else label, spacing, nfe, table)


def reference_tables(
    config: BenchConfig, schedule: Schedule
) -> tuple[samplers.Tableau, samplers.Tableau]:
    """The table of the reference, and that of its check."""
    asked = config.reference
    nodes = grid(schedule, asked.steps, asked.spacing, end=config.end)
    return samplers.build(asked.solver, nodes), samplers.build(asked.check, nodes)


def numbers(table: samplers.Tableau) -> list[Any]:
    """All that decides what a table computes, for a digest."""
    nodes = [table.grid.alpha, table.grid.sigma, table.grid.label]
    return [table.basis, table.carry, table.weights, table.noise, *nodes]
