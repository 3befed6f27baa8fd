"""Where the classes of diffusers put the nodes of a run: one rule for each kind of law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from ..samplers import from_diffusers_config
from ..schedules import EDM, FlowMatching, Grid, Schedule, VPDiscrete
from ..schedules.base import Float, alpha_sigma
from ..schedules.spacing import SPACINGS, Spacing, discrete_times

Config = Mapping[str, Any]

# The kinds of noise levels: a table, a flow, sigmas of EDM, and the angles of IPNDM.
Law = Literal["table", "flow", "edm", "ipndm"]


@dataclass(frozen=True)
class Request:
    """What `set_timesteps` is asked for: a number of steps, or the nodes themselves.

    `mu` is the logarithm of a flow's shift (the shift itself if `time_shift_type` is "linear").
    """

    steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.sigmas is None and self.timesteps is None:
            raise ValueError("set_timesteps: give num_inference_steps, sigmas or timesteps")
        given = self.given
        if min(given.values()) < 1:
            raise ValueError(f"set_timesteps: at least 1 step is needed, got {given}")
        if len(set(given.values())) > 1:
            raise ValueError(f"set_timesteps: these ask for different numbers of steps: {given}")

    @property
    def given(self) -> dict[str, int]:
        """What was given, and how many steps each asks for; a zero that closes sigmas is none."""
        counts = {
            "num_inference_steps": None if self.steps is None else int(self.steps),
            "timesteps": None if self.timesteps is None else len(self.timesteps),
            "sigmas": None if self.sigmas is None else len(open_ended(self.sigmas)),
        }
        return {name: count for name, count in counts.items() if count is not None}

    @property
    def count(self) -> int:
        """The number of steps."""
        return next(iter(self.given.values()))

    def is_open(self, law: Law) -> bool:
        """Whether nobody chose the nodes: flow pipelines pass an even ramp from 1 to 1 / n then."""
        if law != "flow" or self.timesteps is not None:
            return self.sigmas is None and self.timesteps is None
        n = self.count
        return self.sigmas is None or bool(
            np.allclose(open_ended(self.sigmas), np.linspace(1, 1 / n, n))
        )

    def refuse(self, who: str, *names: str) -> None:
        """Raise ValueError if nodes are given by one of `names`, which `who` has no use for."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"set_timesteps: {who} places its nodes itself, without {name}")


def open_ended(sigmas: Sequence[float]) -> Sequence[float]:
    """Sigmas without the zero that may close them."""
    return sigmas[:-1] if len(sigmas) and sigmas[-1] == 0 else sigmas


def replaces_method(config: Config) -> bool:
    """Whether a named solver or a table takes the place of what a class does."""
    return config.get("solver") is not None or config.get("tableau") is not None


# Where a run ends: in clean data; at the smallest level, which is then the last of the nodes that
# a spacing places; or at the first level of the table, and in clean data if that is taken already.
End = Literal["zero", "min", "first"]


def final_sigmas(config: Config) -> End:
    """The end that `final_sigmas_type` asks for."""
    return "min" if config.get("final_sigmas_type") == "sigma_min" else "zero"


@dataclass(frozen=True)
class Placement:
    """How a class of diffusers places its nodes, where its config leaves that open.

    `ahead`: rules in time place one point more and drop the cleanest. `whole`: they round times.
    `within`: sigma spacings run between the ends of those times, not of the whole table. `rounded`:
    the sigma spacings whose times are rounded, `unless_cosine`: but for the cosine schedule.
    `floor`: alpha^2 of a noisiest level that should be zero. `flow_ends`: the first and the last
    flow time, in units of 1 / T from 1 and from 0; `flow_max` bounds them after the shift.
    """

    ahead: bool = False
    whole: bool = True
    within: bool = False
    rounded: tuple[str, ...] = ()
    unless_cosine: bool = False
    floor: float = 0.0
    end: Callable[[Config], End] = final_sigmas
    flow_ends: tuple[int, int] = (0, 1)
    flow_max: float = 1.0


# Sigma spacings by the key of a config that asks for them, in the order in which they win. Lu's is
# uniform in lam, which is what exponential means.
SIGMA_SPACINGS: dict[str, Spacing] = {
    "use_karras_sigmas": SPACINGS["karras"],
    "use_lu_lambdas": SPACINGS["exponential"],
    "use_exponential_sigmas": SPACINGS["exponential"],
    "use_beta_sigmas": SPACINGS["beta"],
}


def end_of(config: Config, placement: Placement) -> End:
    """Where a run of a config ends."""
    return final_sigmas(config) if "final_sigmas_type" in config else placement.end(config)


def sigma_spacing(config: Config) -> str | None:
    """The key of the sigma spacing that a config asks for; ValueError if it asks for two."""
    asked = [key for key in SIGMA_SPACINGS if config.get(key)]
    if len(asked) > 1:
        raise ValueError(f"only one of {' and '.join(asked)} can be used")
    return asked[0] if asked else None


def sigma_ends(config: Config, high: float, low: float) -> tuple[float, float]:
    """The ends of a sigma spacing: those of the config, or else high and low."""
    return config.get("sigma_max") or high, config.get("sigma_min") or low


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
        return placed(law, closed(given, 0.0) if end == "zero" else given, label)
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
        return placed(law, closed(at(times), last), np.append(times, law.t_zero))
    high, low = sigma_ends(config, *(at(times[[0, -1]]) if placement.within else table[[-1, 0]]))
    grid = placed(law, spaced(SIGMA_SPACINGS[spacing], high, low, request.count, end))
    cosine = config.get("beta_schedule") == "squaredcos_cap_v2"
    if spacing not in placement.rounded or (cosine and placement.unless_cosine):
        return grid
    return placed(law, grid.nsr, np.round(grid.label))


def spaced(rule: Spacing, high: float, low: float, n: int, end: End) -> Float:
    """n + 1 values of a rule: from high to low and then zero, or all of them from high to low."""
    return rule.place(high, low, n + 1) if end == "min" else np.append(rule.place(high, low, n), 0)


def closed(nsr: Float, last: float) -> Float:
    """Append the last node: `last`, or clean data if that would repeat the node before."""
    if nsr[-1] == 0:
        return nsr
    return np.append(nsr, last if last < nsr[-1] else 0.0)


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


def single(sigmas: Float) -> Float:
    """The nearest float32 values: a pipeline that reads `sigmas` reads the very nodes."""
    return sigmas.astype(np.float32).astype(np.float64)


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
    even = config["sigma_schedule"] == "exponential"
    rule = SPACINGS["exponential"] if even else Spacing("nsr", rho=config["rho"])
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
