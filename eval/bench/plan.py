"""The cells of a benchmark: which tables run."""

from __future__ import annotations

from dataclasses import dataclass

from ... import samplers
from ...schedules import Schedule, grid
from ...schedules.grid import End
from ...schedules.placed import spacing_name
from ..settings import Planned, SolverConfig, planned
from .config import BenchConfig, ReferenceConfig


@dataclass(frozen=True)
class Panel:
    """What cells have in common that are compared with each other: a model, and a guidance scale.

    `title` says of these what varies within the run.
    """

    model: str
    guidance: float
    title: str


@dataclass(frozen=True, eq=False)
class Cell:
    """One solver on one spacing from one first seed, within `nfe`; it takes `table.nfe`."""

    panel: Panel
    curve: str
    spacing: str
    nfe: int
    seed: int
    solver: SolverConfig
    planned: Planned
    suffix: str = ""

    @property
    def table(self) -> samplers.Tableau:
        """Its table."""
        return self.planned.table

    @property
    def slug(self) -> str:
        """A file name."""
        return f"{self.curve}-{self.table.nfe:03d}{self.suffix}"


def panels(config: BenchConfig) -> list[Panel]:
    """Every model at every guidance scale."""
    found = []
    for model in config.models:
        for guidance in config.guidance:
            parts = [model.name] if len(config.models) > 1 else []
            parts += [f"guidance {guidance:g}"] if len(config.guidance) > 1 else []
            found.append(Panel(model.name, guidance, ", ".join(parts)))
    return found


def plan(config: BenchConfig, schedule: Schedule, panel: Panel, seed: int) -> list[Cell]:
    """Build the tables of all cells of a panel, cheap ones first.

    A solver that cannot spend exactly an NFE gets the largest it can spend below. Where that
    repeats a cell, or it can spend none, there is none. Raises ValueError if a solver has no cell
    at all, and if two curves come out under one name.
    """
    suffix = f"-{panel.model}" if len(config.models) > 1 else ""
    suffix += f"-g{panel.guidance:g}" if len(config.guidance) > 1 else ""
    suffix += f"-s{seed}" if len(config.seeds) > 1 else ""
    cells: dict[str, Cell] = {}
    owners: dict[str, tuple[SolverConfig, str]] = {}
    unable: list[tuple[SolverConfig, samplers.TooFewEvaluations]] = []
    for nfe in sorted({*config.nfe, *(n for solver in config.solvers for n in solver.nfe)}):
        for solver in config.solvers:
            if nfe not in (solver.nfe or config.nfe):
                continue
            for spacing in (solver.spacing,) if solver.spacing else config.spacings:
                scale = panel.guidance
                try:
                    ready = planned(schedule, solver, nfe, spacing, config.end, scale)
                except samplers.TooFewEvaluations as error:
                    unable.append((solver, error))
                    continue
                curve = curve_name(config, solver, ready.table.name, spacing)
                cell = Cell(panel, curve, spacing, nfe, seed, solver, ready, suffix)
                if owners.setdefault(curve, (solver, spacing)) != (solver, spacing):
                    raise ValueError(f"two curves are called {curve}: give one of them a `label`")
                cells.setdefault(cell.slug, cell)
    able = [solver for solver, _ in owners.values()]
    for solver, reason in reversed(unable):
        if solver not in able:
            raise reason
    return list(cells.values())


def curve_name(config: BenchConfig, solver: SolverConfig, name: str, spacing: str) -> str:
    """A solver's label or name, with the spacing where that varies and was not chosen with it."""
    varied = len({*config.spacings, *(s.spacing for s in config.solvers if s.spacing)}) > 1
    label = solver.label or name
    chosen = bool(solver.label and solver.spacing)
    return f"{label}@{spacing_name(spacing)}" if varied and not chosen else label


def reference_tables(
    asked: ReferenceConfig, end: End, schedule: Schedule
) -> tuple[samplers.Tableau, samplers.Tableau]:
    """The table of the reference, and that of its check; ValueError if one draws noise."""
    nodes = grid(schedule, asked.steps, asked.spacing, end=end)
    tables = samplers.build(asked.solver, nodes), samplers.build(asked.check, nodes)
    for table in tables:
        if table.stochastic:
            raise ValueError(f"a reference must be deterministic, and {table.name} draws noise")
    return tables
