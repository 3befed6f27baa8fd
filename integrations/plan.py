"""From a config to numbers: everything that a run needs, as one immutable value."""

from __future__ import annotations

import inspect
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from .. import samplers
from ..samplers import Tableau, trace
from ..schedules import EDM, FlowMatching, Grid, Schedule, grid
from ..schedules.base import Float, Form
from ..schedules.spacing import named as named_spacing
from .families import FAMILIES, Family, defaults, law_of
from .nodes import (
    at_levels,
    edm_nodes,
    flow_nodes,
    flow_shift,
    ipndm_nodes,
    levels,
    placed,
    relabelled,
    table_nodes,
)
from .placement import final_sigmas, sigma_ends
from .program import Line, program
from .reading import Reading, clipping, reading
from .request import Config, Law, Request, replaces_method
from .training import training_levels

# Below this lam all is noise, and tables may name any level that is.
NOISE = -6.0


@dataclass(frozen=True, eq=False)
class Plan:
    """A run: tables on states as the pipeline holds them, and how its network is read.

    `tail(begin)` is the table of a run that begins at row `begin` of the whole one, `steps` the
    number of steps between which pipelines may begin, `scaled` whether states are scaled only for
    the network, `clip` what is done to x0, `residual` whether what that takes stays in the state,
    `device` where the numbers of a compiled step live. What it makes of these is kept.
    """

    tail: Callable[[int], Tableau]
    steps: int
    law: Law
    scaled: bool
    config: Config
    request: Request
    device: torch.device | str | None
    clip: Callable[[Tensor], Tensor] | None
    residual: bool
    programs: dict[int, tuple[Line, ...]] = field(default_factory=dict, init=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # By its recipe: what it holds are functions and chains of nodes.
        return make_plan, (self.config, self.request, self.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    @cached_property
    def table(self) -> Tableau:
        """The table of the whole run."""
        return self.tail(0)

    @cached_property
    def order(self) -> int | None:
        """Rows per step, as pipelines count; None if there are too few steps to tell."""
        return 1 if self.table.grid.nfe == self.steps else rows_per_step(self.table)

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """How the network is used at each row of the whole table."""
        return tuple(
            reading(self.config, self.law, node.alpha, node.sigma)
            for node in self.table.grid.nodes[:-1]
        )

    def program(self, begin: int) -> tuple[Line, ...]:
        """The lines of a run that begins at row `begin`; made once."""
        if begin not in self.programs:
            self.programs[begin] = program(
                self.tail(begin).detached(),
                self.readings[begin:],
                begin,
                clipped=self.clip is not None,
                residual=self.residual,
                device=self.device,
                home=partial(self.program, begin),
            )
        return self.programs[begin]

    @cached_property
    def sigmas(self) -> Float:
        """What diffusers calls sigma: sigma / alpha, for flows sigma; one more than rows."""
        grid = self.table.grid
        if self.law != "flow":
            return grid.nsr
        return 1 - grid.sigma if self.config.get("invert_sigmas") else grid.sigma


def tails(steps: Grid, build: Callable[[Grid, int], Tableau]) -> Callable[[int], Tableau]:
    """Tables for every begin: `build(grid, begun)` on the steps that are left.

    A run that begins at a stage whose level is that of the next step waits for that step (pipelines
    count in evaluations); it cannot begin at other stages inside a step: ValueError. Where `build`
    gives another number of rows than are left, as behind a warm-up, those of the whole run go on.
    """

    @lru_cache(maxsize=8)
    def tail(begin: int) -> Tableau:
        if begin == 0:
            table = build(steps, 0)
            return table if table.grid.nfe == steps.nfe else even(table)
        whole = tail(0)
        if whole.grid.nfe == steps.nfe:
            return build(steps.tail(begin), begin)
        step = int((~whole.grid.stage[:begin]).sum())
        wait = int((~whole.grid.stage[begin:]).argmax())
        if step < steps.nfe and (wait == 0 or whole.grid.lam[begin] == steps.lam[step]):
            table = waiting(build(steps.tail(step), step), wait)
            if table.grid.nfe == whole.grid.nfe - begin:
                return table
        return whole.tail(begin)

    return tail


def rows_per_step(table: Tableau) -> int | None:
    """The rows of every step but the first and the last; None if there are too few to tell."""
    counts = np.diff(np.flatnonzero(~table.grid.stage))
    if (counts == 1).all():
        return 1
    return int(counts[1:-1].min()) if len(counts) > 2 else None


def even(table: Tableau) -> Tableau:
    """The table with as many rows in the first step as in the others.

    A first step from pure noise has one; but pipelines find the place of a step by counting.
    """
    first = int((~table.grid.stage[1:]).argmax()) + 1
    return waiting(table, max((rows_per_step(table) or 1) - first, 0))


def waiting(table: Tableau, rows: int) -> Tableau:
    """The table behind `rows` rows that leave the state as it is."""
    if rows == 0:
        return table
    n = rows + table.grid.nfe
    index = [0] * rows + list(range(table.grid.nfe + 1))
    stage = [False, *[True] * rows, *table.grid.stage[1:].tolist()]
    weights, noise = (np.zeros((n, n, *each.shape[2:])) for each in (table.weights, table.noise))
    weights[rows:, rows:], noise[rows:, rows:] = table.weights, table.noise
    carry, bias = (
        np.concatenate([np.full((rows, *each.shape[1:]), value), each])
        for each, value in ((table.carry, 1.0), (table.bias, 0.0))
    )
    grid = table.grid.select(index, stage)
    return replace(table, grid=grid, carry=carry, weights=weights, noise=noise, bias=bias)


def make_plan(config: Config, request: Request, device: torch.device | str | None = None) -> Plan:
    """The run that a config and a request ask for; ValueError says what is wrong with them."""
    family, law = FAMILIES[config["like"]], law_of(config)
    if config.get("nfe") is not None:
        request = held_to_nfe(config, law, request)
    form: Form = "edm" if family.scaled or law == "edm" else "flow" if law == "flow" else "vp"
    if config.get("compat") == "diffusers":
        tail, steps = traced(config, request), request.count
    elif config.get("tableau") is not None:
        if not request.is_open(law):
            raise ValueError(
                f"set_timesteps was given {request.given}, and a table has nodes of its own"
            )
        table = chosen_table(config["tableau"], request.count)
        check_levels(config, table)
        tail = table.tail
        steps = tail(0).grid.nfe
    else:
        nodes = step_nodes(config, family, law, request)
        tail, steps = tails(nodes, builder(config, family)), nodes.nfe

    @lru_cache(maxsize=8)
    def formed(begin: int) -> Tableau:
        return tail(begin).in_form(form)

    # As in DDIM of diffusers, which goes on with the eps of the network as it is.
    residual = config["like"] == "DDIMScheduler" and not replaces_method(config)
    clip = clipping(config)
    return Plan(formed, steps, law, family.scaled, config, request, device, clip, residual)


def held_to_nfe(config: Config, law: Law, request: Request) -> Request:
    """The request that a run with the `nfe` of its config makes, whatever was asked for.

    The most steps that cost at most `nfe` evaluations. ValueError if there are none, or if nodes
    were chosen.
    """
    nfe: int = config["nfe"]
    if not request.is_open(law):
        raise ValueError(f"set_timesteps was given {request.given}, and nfe={nfe} holds the run")
    free = {**config, "nfe": None}

    def too_many(steps: int) -> bool:
        return make_plan(free, Request(steps, mu=request.mu)).table.nfe > nfe

    if config.get("tableau") is not None:
        possible = [n for n in held_tables(config["tableau"]) if n <= nfe]
        steps = max(possible, default=0)
    else:
        # Most solvers take one evaluation a step.
        steps = nfe if not too_many(nfe) else bisect(range(1, nfe), False, key=too_many)
    if steps < 1:
        raise ValueError(f"nfe={nfe}: the shortest run takes more network evaluations")
    return Request(steps, mu=request.mu)


def step_nodes(config: Config, family: Family, law: Law, request: Request) -> Grid:
    """The nodes between which a solver steps, in the form of their own law."""
    if config.get("spacing") is not None and request.is_open(law):
        return spaced_nodes(config, law, request)
    match law:
        case "flow":
            return flow_nodes(config, family.placement, request)
        case "edm":
            return edm_nodes(config, request, family.told)
        case "ipndm":
            return ipndm_nodes(config, request)
    return table_nodes(config, family.placement, request)


def spaced_nodes(config: Config, law: Law, request: Request) -> Grid:
    """Nodes of one of our spacings, between the ends of the config."""
    options: dict[str, Any] = {"end": "min"} if final_sigmas(config) == "min" else {}
    options |= config.get("spacing_options") or {}
    spacing = named_spacing(config["spacing"])

    def place(schedule: Schedule) -> Grid:
        return grid(schedule, request.count, spacing, **options)

    match law:
        case "flow":
            shift, t_min = flow_shift(config, request.mu), 1 / config["num_train_timesteps"]
            return place(FlowMatching(shift, t_min))
        case "edm":
            sigmas = place(EDM(config["sigma_min"], config["sigma_max"])).sigma
            return at_levels(EDM(), sigmas, FAMILIES[config["like"]].told.label(sigmas))
        case "ipndm":
            raise ValueError("spacing: IPNDM has nodes of its own; choose another class in `like`")
    table = levels(config)
    if config.get("sigma_min") is None and config.get("sigma_max") is None:
        return relabelled(config, place(table))
    high, low = sigma_ends(config, *table.nsr([table.t_max, table.t_min]))
    return relabelled(config, placed(table, place(EDM(low, high)).nsr))


def builder(config: Config, family: Family) -> Callable[[Grid, int], Tableau]:
    """The solver of a config: the one it names, or what its class does."""
    name: str | None = config.get("solver")
    if name is None:
        return lambda grid, begun: family.method(config, grid, begun)
    options: Mapping[str, Any] = config.get("solver_options") or {}
    late = samplers.solver(name).late

    def build(grid: Grid, begun: int) -> Tableau:
        if begun and late is not None:
            return samplers.build(late, grid)
        return samplers.build(name, grid, **options)

    return build


def held_tables(tableau: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The tables written into a config, by their number of rows: one, or a family."""
    if "weights" in tableau:
        return {len(tableau["weights"]): tableau}
    return {int(rows): table for rows, table in tableau.items()}


def chosen_table(tableau: Mapping[str, Any], rows: int) -> Tableau:
    """The table of that many rows in a config; ValueError if there is none, or it has others."""
    tables = held_tables(tableau)
    if rows not in tables:
        known = ", ".join(map(str, tables))
        raise ValueError(f"this scheduler holds tables of {known} evaluations, not {rows}")
    table = Tableau.from_dict(tables[rows], f"tableau of {rows} evaluations")
    if table.grid.nfe != rows:
        raise ValueError(f"the tableau under {rows} has {table.grid.nfe} rows")
    return table


def check_levels(config: Config, table: Tableau) -> None:
    """ValueError if the times that a table tells the network are of other levels in this config.

    A learned table may tell it other times than those of its nodes; then those are judged.
    """
    lam, law = table.grid.lam[:-1], table.grid.schedule
    said = levels_off(config, table.grid.label[:-1], lam)
    if said is not None and law is not None:
        said = levels_off(config, law.label(table.grid.time[:-1]), lam) and said
    if said is not None:
        raise ValueError(f"tableau {table.name!r} was made for another noise schedule: {said}")


def levels_off(config: Config, label: Float, lam: Float) -> str | None:
    """Where times are of other levels than lam, in words; None if nowhere."""
    alpha, sigma = training_levels(config, label)
    with np.errstate(divide="ignore"):
        meant = np.log(alpha) - np.log(sigma)
    wrong = ~(np.isclose(lam, meant, rtol=0.02, atol=0.1) | (lam < NOISE) & (meant < NOISE))
    if not wrong.any():
        return None
    n = int(wrong.argmax())
    return (
        f"its node {n} is at lam {lam[n]:.4g}, and the time {label[n]:.6g} that the network is "
        f"told there is at {meant[n]:.4g} in this one"
    )


def traced(config: Config, request: Request) -> Callable[[int], Tableau]:
    """What diffusers itself does, defects included: its class on unit impulses."""
    kind = getattr(diffusers, config["like"])
    # What they do to x0 is not linear; it is done here, before the table.
    off = {"thresholding": False, "clip_sample": False}
    if str(config.get("variance_type")).startswith("learned"):
        # What it learned is cut off here, too.
        off["variance_type"] = False
    known = defaults(config["like"])
    original = kind(**{key: off.get(key, config[key]) for key in known if key in config})
    asked = {
        "num_inference_steps": request.steps,
        "sigmas": request.sigmas,
        "timesteps": request.timesteps,
        "mu": request.mu,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    accepted = inspect.signature(original.set_timesteps).parameters
    if unknown := [key for key in given if key not in accepted]:
        raise ValueError(f"compat='diffusers': {config['like']} takes no {' or '.join(unknown)}")
    original.set_timesteps(**given)
    return lru_cache(maxsize=8)(lambda begin: trace(original, begin=begin, check=False))
