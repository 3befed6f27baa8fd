"""Where the classes of diffusers put the nodes of a run: one rule for each kind of law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..samplers import from_diffusers_config
from ..schedules import EDM, FlowMatching, Grid, Schedule, VPDiscrete
from ..schedules.base import Float, alpha_sigma
from ..schedules.spacing import SPACINGS, Spacing, discrete_times
from .placement import (
    SIGMA_SPACINGS,
    Placement,
    closed,
    end_of,
    final_sigmas,
    sigma_ends,
    sigma_spacing,
    single,
    spaced,
)
from .request import Config, Request, open_ended, replaces_method

BETA_KEYS = (
    "beta_schedule",
    "beta_start",
    "beta_end",
    "num_train_timesteps",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def levels(config: Config) -> VPDiscrete:
    """The table of noise levels of a config."""
    law, _ = from_diffusers_config({key: config[key] for key in BETA_KEYS if key in config})
    assert isinstance(law, VPDiscrete)
    return law


def level_ratios(law: VPDiscrete, floor: float) -> Float:
    """sigma / alpha of all levels, rising; pure noise has alpha^2 = `floor` where that is not 0."""
    nsr = law.nsr(np.arange(law.t_max + 1))
    if floor and np.isinf(nsr[-1]):
        nsr[-1] = np.sqrt(1 / floor - 1)
    return nsr


def table_nodes(config: Config, placement: Placement, request: Request) -> Grid:
    """Nodes on a table of levels."""
    return relabelled(config, level_nodes(config, placement, request))


def relabelled(config: Config, grid: Grid) -> Grid:
    """The nodes under what a network is told: their times, or log(nsr) / 4, as in EDM."""
    return Grid.from_sigmas(grid.nsr) if continuous(config) else grid


def continuous(config: Config) -> bool:
    """Whether a network is told log(nsr) / 4: `timestep_type` says so, for v_prediction only."""
    return (
        config.get("timestep_type") == "continuous" and config["prediction_type"] == "v_prediction"
    )


def level_nodes(config: Config, placement: Placement, request: Request) -> Grid:
    """Nodes at times of a rule, spaced in nsr = sigma / alpha, or given.

    Levels that are given carry the times that are given with them, or else their own.
    """
    law, spacing = levels(config), sigma_spacing(config)
    table, end = level_ratios(law, placement.floor), end_of(config, placement)
    label = None
    if request.timesteps is not None:
        label = np.append(np.asarray(request.timesteps, dtype=np.float64), law.t_zero)
    if request.sigmas is not None:
        given = np.asarray(request.sigmas, dtype=np.float64)
        return placed(law, given if end == "min" else closed(given, 0.0), label)
    if label is not None and spacing is not None:
        raise ValueError(f"timesteps cannot be given with {spacing}: it places the nodes itself")
    even = config.get("interpolation_type") == "log_linear"
    if even and spacing is None and label is None:
        nsr = spaced(SPACINGS["exponential"], table[-1], table[0], request.count, "min")
        return placed(law, nsr)

    def at(times: Float) -> Float:
        if even:
            return law.nsr(times)
        return np.interp(times, np.arange(len(table)), table)

    times = wanted_times(config, placement, law, request.count) if label is None else label[:-1]
    if spacing is None:
        last = 0.0 if end == "zero" else table[0]
        if end == "min" and label is None and at(times)[-1] == last:
            # One point more, and the last of them is where the run ends.
            times = wanted_times(config, replace(placement, ahead=True), law, request.count)
        nsr = closed(at(times), last)
        # Heun asks at the end of a step that does not reach clean data.
        return placed(law, nsr, np.append(times, law.t_min if nsr[-1] else law.t_zero))
    high, low = sigma_ends(config, *(at(times[[0, -1]]) if placement.within else table[[-1, 0]]))
    grid = placed(law, spaced(SIGMA_SPACINGS[spacing], high, low, request.count, end))
    cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
    if spacing not in placement.rounded or (cosine and placement.unless_cosine):
        return grid
    return placed(law, grid.nsr, np.round(grid.label))


def wanted_times(config: Config, placement: Placement, law: VPDiscrete, n: int) -> Float:
    """The n times of the rule of a config, noisiest first.

    Rounded as the rule says, but not where more steps than levels would then repeat a time.
    """
    total = int(law.t_max) + 1
    if config.get("lambda_min_clipped", -np.inf) > -np.inf:
        total = int((law.lam(np.arange(total)) >= config["lambda_min_clipped"]).sum())
    rule, offset = config.get("timestep_spacing", "linspace"), config.get("steps_offset", 0)
    ask = partial(discrete_times, rule, total, n, placement.ahead, offset)
    times = ask(exact=rule == "linspace" and not placement.whole)
    return ask(exact=True) if len(np.unique(times)) < n else times


def placed(law: VPDiscrete, nsr: Float, label: Float | None = None) -> Grid:
    """Nodes at nsr, told to the network as `label` or as the time of their level.

    Beyond the ends of the table a network is told the end.
    """
    with np.errstate(divide="ignore"):
        lam = -np.log(single(nsr))
    time = law.time(np.where(np.isposinf(lam), lam, lam.clip(*law.lam([law.t_max, law.t_min]))))
    return Grid(time, *alpha_sigma(lam, "vp"), lam, time if label is None else label, schedule=law)


def flow_shift(config: Config, mu: float | None) -> float:
    """The shift of the flow of a config, from `mu` where shifting is dynamic."""
    if not config.get("use_dynamic_shifting"):
        return float(config["shift"] if "shift" in config else config.get("flow_shift", 1.0))
    if mu is None:
        raise ValueError("use_dynamic_shifting: set_timesteps needs mu, which sets the shift")
    return float(mu if config.get("time_shift_type") == "linear" else np.exp(mu))


def flow_nodes(config: Config, placement: Placement, request: Request) -> Grid:
    """Nodes of a flow, x = (1 - s) x0 + s eps, told to the network as s times the levels.

    Levels that are given are shifted; times that are given alone are not.
    """
    total, n = config["num_train_timesteps"], request.count
    shift, spacing = FlowMatching(flow_shift(config, request.mu)).sigma, sigma_spacing(config)
    end = end_of(config, placement)
    after, before = placement.flow_ends
    s: Float
    if request.sigmas is not None:
        s = shift(np.asarray(open_ended(request.sigmas), dtype=np.float64))
    elif request.timesteps is not None:
        s = np.asarray(request.timesteps, dtype=np.float64) / total
    else:
        points = n + 1 if placement.ahead or end == "min" else n
        least = 1 if end == "min" else before
        s = np.linspace(1 - after / total, least / total, points)
        s = shift(s if end == "min" else s[:n])
    if config.get("shift_terminal"):
        s = 1 - (1 - s) * (1 - config["shift_terminal"]) / (1 - s[-1])
    if spacing is not None and placement.ahead:
        # Classes of both worlds space the levels of their table, as sigma / alpha.
        high, low = sigma_ends(config, *levels(config).nsr([total - 1, 0]))
        nsr = spaced(SIGMA_SPACINGS[spacing], high, low, n, end)
        s = nsr / (1 + nsr)
    elif spacing is not None:
        s = spaced(SIGMA_SPACINGS[spacing], s[0], s[-1], n, end)
    elif end != "min" or request.steps is None:
        s = closed(s, 0.0)
    if not replaces_method(config):
        # Where their solvers would fall over pure noise.
        s = np.minimum(s, placement.flow_max)
    s = single(s)
    label = s * total
    if request.timesteps is not None:
        label = np.append(np.asarray(request.timesteps, dtype=np.float64), 0.0)
    if config.get("invert_sigmas"):
        label = total - label
    return at_levels(FlowMatching(), s, label)


def at_levels(law: Schedule, times: Float, label: Float) -> Grid:
    """Nodes at times of a law, under labels of their own."""
    return replace(Grid.from_times(law, times), label=label)


class Told(NamedTuple):
    """What an EDM network is told at sigma, and its inverse."""

    label: Callable[[Float], Float]
    sigma: Callable[[Float], Float]


def edm_nodes(config: Config, request: Request, told: Told) -> Grid:
    """Nodes between sigma_max and sigma_min, x = x0 + sigma eps.

    What EDM pipelines pass as sigmas is a ramp from 0 to 1, which is placed between the two.
    """
    request.refuse("an EDM scheduler", "timesteps")
    high, low = config["sigma_max"], config["sigma_min"]
    # A named spacing or a table takes the place of these keys, and a request for others has none.
    even = config.get("sigma_schedule") == "exponential"
    rule = SPACINGS["exponential"] if even else Spacing("nsr", rho=config.get("rho", 7.0))
    if request.sigmas is None:
        sigma = spaced(rule, high, low, request.count, final_sigmas(config))
    else:
        ramp = np.asarray(request.sigmas, dtype=np.float64)
        if ramp.min() < 0 or ramp.max() > 1:
            raise ValueError(
                f"sigmas of an EDM scheduler are a ramp from 0 to 1, placed between sigma_max and "
                f"sigma_min; got {ramp.tolist()}"
            )
        sigma = closed(rule.between(high, low, ramp), 0.0)
    sigma = single(sigma)
    return at_levels(EDM(low, high), sigma, told.label(sigma))


def ipndm_nodes(config: Config, request: Request) -> Grid:
    """The nodes of IPNDM: sigma = sin(pi u / 2)^2 on uniform u, alpha^2 + sigma^2 = 1."""
    request.refuse("IPNDM", "timesteps", "sigmas")
    if config.get("trained_betas") is not None:
        sigma = np.asarray(config["trained_betas"], dtype=np.float64)
    else:
        sigma = np.square(np.sin(np.linspace(1, 0, request.count + 1) * np.pi / 2))
    alpha = np.sqrt(1 - sigma**2)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    time = np.arctan2(sigma, alpha) / np.pi * 2
    return Grid(time, alpha, sigma, lam, time)
