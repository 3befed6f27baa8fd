"""From a config to numbers: everything that a run needs, as one immutable value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, cast

import diffusers
import numpy as np
import torch
from torch import Tensor

from .. import samplers
from ..samplers import Tableau, trace
from ..samplers.basis import Basis, affine
from ..samplers.diffusers_model import NAMES
from ..samplers.program import Step, compile_steps
from ..schedules import EDM, FlowMatching, Grid, Schedule, grid
from ..schedules.base import Float, Form, alpha_sigma
from .families import FAMILIES, Family, Law, angle, defaults
from .keys import replaces_method
from .nodes import (
    Config,
    Request,
    edm_nodes,
    flow_nodes,
    flow_shift,
    ipndm_nodes,
    level_ratios,
    levels,
    table_nodes,
)


class Reading(NamedTuple):
    """How to use a network at one node: out = network(scale x), x0 = a x + b out."""

    scale: float
    a: float
    b: float


class Line(NamedTuple):
    """One row, for outputs in the form that costs least to make.

    `step` weighs outputs m, which are x + ratio out, or `out` itself if `ratio` is None; a row
    whose x0 is clipped first makes m = to_x x + to_x0 x0 of it. x0 = unit m where the table is one
    in x0, `unit` is 0 in others. `residual` is the share of what clipping took that stays in the
    state, `draws` says whether the generator is asked, and `inside` and `leads_inside` whether the
    row starts and ends inside a step.
    """

    step: Step
    ratio: float | None
    to_x: float
    to_x0: float
    unit: float
    residual: float
    draws: bool
    inside: bool
    leads_inside: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """A run: tables on states as the pipeline holds them, and how its network is read.

    `tail(begin)` is the table of a run that begins at row `begin` of the whole one, `steps` the
    number of steps between which pipelines may begin, `clip` what is done to x0.
    """

    tail: Callable[[int], Tableau]
    steps: int
    law: Law
    scaled: bool
    config: Config
    request: Request
    clip: Callable[[Tensor], Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # By its recipe: what it holds are functions and chains of nodes.
        return make_plan, (self.config, self.request)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    @cached_property
    def table(self) -> Tableau:
        """The table of the whole run."""
        return self.tail(0)

    @cached_property
    def order(self) -> int | None:
        """Rows per step where all but the last have as many; None if there are too few to tell."""
        if self.table.grid.nfe == self.steps:
            return 1
        starts = np.flatnonzero(~self.table.grid.stage[:-1])
        return int(np.diff(starts).min()) if self.steps > 2 else None

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """How the network is used at each row of the whole table."""
        return tuple(
            reading(self.config, self.law, self.scaled, node.alpha, node.sigma)
            for node in self.table.grid.nodes[:-1]
        )

    @cached_property
    def _programs(self) -> dict[int, tuple[Line, ...]]:
        return {}

    def program(self, begin: int) -> tuple[Line, ...]:
        """The rows of `tail(begin)`, ready to run; compiled once."""
        if begin not in self._programs:
            self._programs[begin] = program(self, begin)
        return self._programs[begin]

    @cached_property
    def sigmas(self) -> Float:
        """What diffusers calls sigma: sigma / alpha, for flows sigma; one more than rows."""
        grid = self.table.grid
        if self.law != "flow":
            return grid.nsr
        return 1 - grid.sigma if self.config.get("invert_sigmas") else grid.sigma


def program(plan: Plan, begin: int) -> tuple[Line, ...]:
    """See `Plan.program`.

    With m = p x + q x0 and x0 = a x + b out, m is (p + q a) x + q b out: up to a factor, which its
    column of the table takes, x + ratio out. So one sum of two terms makes an output, and none
    where the table is in the network's own prediction.
    """
    table = plan.tail(begin).numeric()
    grid, readings = table.grid, plan.readings[begin:]
    p, q = affine(table.basis, grid.alpha[:-1], grid.sigma[:-1])
    a, b = (np.array(values) for values in list(zip(*readings, strict=True))[1:])
    of_x, of_out = p + q * a, q * b
    # What cancels in p + q a is the network's own basis, up to rounding.
    native = np.abs(of_x) <= 1e-12 * (np.abs(p) + np.abs(q * a))
    unit = np.where(native, of_out, of_x) if plan.clip is None else np.ones(len(p))
    ratio = of_out / np.where(native, 1.0, of_x)
    steps = compile_steps(grid.nodes, table.carry, table.weights * unit, table.noise, "x0")
    # DDIM of diffusers goes on with the eps of the network as it is: what was clipped from x0 is
    # still in it, times - sigma' alpha / sigma.
    keeps = plan.config["like"] == "DDIMScheduler" and not replaces_method(plan.config)
    residual = -grid.sigma[1:] * grid.alpha[:-1] / grid.sigma[:-1] * keeps
    return tuple(
        Line(
            step,
            None if native[n] else float(ratio[n]),
            float(p[n]),
            float(q[n]),
            float(unit[n]) if table.basis == "x0" else 0.0,
            float(residual[n]),
            # As in diffusers every step draws, also one that has no use for it, and a stage inside
            # a step if it adds noise.
            table.stochastic and (step.draws or not bool(grid.stage[n + 1])),
            bool(grid.stage[n]),
            bool(grid.stage[n + 1]),
        )
        for n, step in enumerate(steps)
    )


def tails(steps: Grid, build: Callable[[Grid, int], Tableau]) -> Callable[[int], Tableau]:
    """Tables for every begin: `build(grid, begun)` on the steps that are left.

    A run that begins at a stage whose level is that of the next step waits for that step (pipelines
    count in evaluations); it cannot begin at other stages inside a step: ValueError.
    """

    @lru_cache(maxsize=8)
    def tail(begin: int) -> Tableau:
        if begin == 0:
            return build(steps, 0)
        whole = tail(0)
        if whole.grid.nfe == steps.nfe:
            return build(steps.tail(begin), begin)
        step = int((~whole.grid.stage[:begin]).sum())
        if not whole.grid.stage[begin]:
            return build(steps.tail(step), step)
        if step == steps.nfe or whole.grid.lam[begin] != steps.lam[step]:
            return whole.tail(begin)
        wait = int((~whole.grid.stage[begin:]).argmax())
        return waiting(build(steps.tail(step), step), wait)

    return tail


def reading(config: Config, law: Law, scaled: bool, alpha: float, sigma: float) -> Reading:
    """How diffusers uses a network at one level.

    The network sees states in its own form: `scaled` ones x0 + sigma eps are divided by
    sqrt(1 + sigma^2), those of EDM by sqrt(sigma_data^2 + sigma^2). There x0 = (out - p x) / q for
    out = p x + q x0 (see `affine`), and c_skip x + c_out out for EDM (Karras et al. 2022, table 1).
    """
    kind = config.get("prediction_type", "flow_prediction" if law == "flow" else "epsilon")
    if law == "edm":
        data = config["sigma_data"]
        total = float(np.hypot(sigma, data))
        signs = {"epsilon": 1.0, "v_prediction": -1.0}
        if kind not in signs:
            raise ValueError(f"prediction_type {kind!r} is not one of {', '.join(signs)} of EDM")
        return Reading(1 / total, (data / total) ** 2, signs[kind] * sigma * data / total)
    if law == "ipndm":
        return Reading(1.0, alpha, -sigma)
    if kind not in NAMES:
        raise ValueError(f"prediction_type {kind!r} is not one of {', '.join(NAMES)}")
    if kind == "v_prediction" and not scaled:
        return Reading(1.0, alpha, -sigma)
    if kind == "flow_prediction":
        return Reading(1.0, 1.0, sigma if config.get("invert_sigmas") else -sigma)
    scale = 1 / float(np.hypot(alpha, sigma)) if scaled else 1.0
    p, q = affine(cast(Basis, NAMES[kind]), alpha * scale, sigma * scale)
    if q == 0:
        raise ValueError(
            f"the first node is pure noise (alpha = 0), where prediction_type {kind!r} says "
            f"nothing about x0: use v_prediction, or a schedule without zero terminal SNR"
        )
    return Reading(scale, -p / q * scale, 1 / q)


def waiting(table: Tableau, rows: int) -> Tableau:
    """The table behind `rows` rows that leave the state as it is."""
    n = rows + table.grid.nfe
    index = [0] * rows + list(range(table.grid.nfe + 1))
    stage = [False, *[True] * rows, *table.grid.stage[1:].tolist()]
    weights, noise = np.zeros((2, n, n))
    weights[rows:, rows:], noise[rows:, rows:] = table.weights, table.noise
    carry = np.append(np.ones(rows), table.carry)
    grid = table.grid.select(index, stage)
    return replace(table, grid=grid, carry=carry, weights=weights, noise=noise)


def make_plan(config: Config, request: Request) -> Plan:
    """The run that a config and a request ask for; ValueError says what is wrong with them."""
    family = FAMILIES[config["like"]]
    law: Law = "flow" if config.get("use_flow_sigmas") else family.law
    form: Form = "edm" if family.scaled or law == "edm" else "flow" if law == "flow" else "vp"
    if config.get("compat") == "diffusers":
        tail = traced(config, request)
        steps = int((~tail(0).grid.stage[:-1]).sum())
    elif config.get("tableau") is not None:
        tail = chosen_table(config["tableau"], request).tail
        steps = tail(0).grid.nfe
    else:
        nodes = step_nodes(config, family, law, request)
        tail, steps = tails(nodes, builder(config, family)), nodes.nfe

    @lru_cache(maxsize=8)
    def formed(begin: int) -> Tableau:
        return tail(begin).in_form(form)

    return Plan(formed, steps, law, family.scaled, config, request, clipping(config))


def clipping(config: Config) -> Callable[[Tensor], Tensor] | None:
    """What a config does to x0 before it is used, or None.

    `thresholding`: the quantile `dynamic_thresholding_ratio` of |x0| of each sample, at least 1 and
    at most `sample_max_value`, bounds it and is scaled to 1 (Saharia et al. 2022, "Imagen").
    `clip_sample`: a fixed bound.
    """
    if config.get("thresholding"):
        ratio = float(config.get("dynamic_thresholding_ratio", 0.995))
        largest = float(config.get("sample_max_value", 1.0))

        def threshold(x0: Tensor) -> Tensor:
            flat = x0.flatten(1)
            bound = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(1.0, largest)
            return (flat.clamp(-bound, bound) / bound).reshape(x0.shape)

        return threshold
    if config.get("clip_sample"):
        bound = float(config.get("clip_sample_range", 1.0))
        return lambda x0: x0.clamp(-bound, bound)
    return None


def step_nodes(config: Config, family: Family, law: Law, request: Request) -> Grid:
    """The nodes between which a solver steps, in the form of their own law."""
    if config.get("spacing") is not None and request.sigmas is None and request.timesteps is None:
        options = config.get("spacing_options") or {}
        return grid(own_law(config, law, request), request.count, config["spacing"], **options)
    match law:
        case "flow":
            return flow_nodes(config, family.placement, request)
        case "edm":
            return edm_nodes(config, request, family.label)
        case "ipndm":
            return ipndm_nodes(config, request)
    return table_nodes(config, family.placement, request)


def own_law(config: Config, law: Law, request: Request) -> Schedule:
    """The law of a config as a schedule, for our own spacings."""
    match law:
        case "flow":
            shift = flow_shift(config, request.mu)
            # k from the image of 1/2: k / (1 + k).
            middle = float(shift(np.array(0.5)))
            return FlowMatching(middle / (1 - middle), t_min=1 / config["num_train_timesteps"])
        case "edm":
            return EDM(config["sigma_min"], config["sigma_max"])
        case "ipndm":
            raise ValueError("spacing: IPNDM has nodes of its own; choose another class in `like`")
    return levels(config)


def builder(config: Config, family: Family) -> Callable[[Grid, int], Tableau]:
    """The solver of a config: the one it names, or what its class does."""
    name: str | None = config.get("solver")
    if name is None:
        return lambda grid, begun: family.method(config, grid, begun)
    options: Mapping[str, Any] = config.get("solver_options") or {}
    return lambda grid, begun: samplers.build(name, grid, **options)


def chosen_table(tableau: Mapping[str, Any], request: Request) -> Tableau:
    """A table written into a config: one, or a family keyed by the number of its steps."""
    if "weights" in tableau:
        return Tableau.from_dict(tableau, "the scheduler's tableau")
    if str(request.count) not in tableau:
        raise ValueError(
            f"this scheduler holds tables for {', '.join(tableau)} steps, not {request.count}"
        )
    return Tableau.from_dict(tableau[str(request.count)], f"tableau of {request.count} steps")


def traced(config: Config, request: Request) -> Callable[[int], Tableau]:
    """What diffusers itself does, defects included: its class on unit impulses."""
    kind = getattr(diffusers, config["like"])
    # What they do to x0 is not linear; it is done here, before the table.
    off = {"thresholding": False, "clip_sample": False}
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


def table_of_alphas(config: Config) -> Float:
    """alpha^2 of the table of levels of a config, float64."""
    return 1 / (1 + level_ratios(levels(config), FAMILIES[config["like"]].placement.floor) ** 2)


def training_levels(config: Config, labels: Float) -> tuple[Float, Float]:
    """(alpha, sigma) of the labels that a network is trained with, in the form of the states."""
    family = FAMILIES[config["like"]]
    law: Law = "flow" if config.get("use_flow_sigmas") else family.law
    if law == "flow":
        sigma = np.asarray(labels, dtype=np.float64) / config["num_train_timesteps"]
        return 1 - sigma, sigma
    if law == "edm":
        sigma = np.tan(labels * np.pi / 2) if family.label is angle else np.exp(4 * labels)
        return np.ones_like(sigma), sigma
    if law == "ipndm":
        return np.cos(labels * np.pi / 2), np.sin(labels * np.pi / 2)
    table = levels(config)
    lam = table.lam(np.clip(labels, table.t_min, table.t_max))
    return alpha_sigma(lam, "edm" if family.scaled else "vp")


def training_sigmas(config: Config) -> Float:
    """What diffusers calls sigma, of all levels that a network is trained on, falling, and zero."""
    family = FAMILIES[config["like"]]
    if family.law == "edm":
        return edm_nodes(config, Request(steps=config["num_train_timesteps"]), family.label).sigma
    if family.law == "flow" or config.get("use_flow_sigmas"):
        total = config["num_train_timesteps"]
        return np.arange(total, -1, -1) / total
    if family.law == "ipndm":
        return ipndm_nodes(config, Request(steps=config["num_train_timesteps"])).nsr
    product = table_of_alphas(config)[::-1]
    return np.append(np.sqrt((1 - product) / product), 0.0)


def starting_scale(config: Config, largest: float) -> float:
    """The deviation of the state that a run starts from, `largest` its sigma.

    Classes whose states are x0 + sigma eps start from sigma, or from that of noise and data
    together where their first node may be short of the noisiest level.
    """
    family = FAMILIES[config["like"]]
    if family.law == "edm":
        return float(np.hypot(config["sigma_max"], 1.0))
    if not family.scaled:
        return 1.0
    leading = config.get("timestep_spacing") == "leading"
    return float(np.hypot(largest, 1.0)) if leading else largest
