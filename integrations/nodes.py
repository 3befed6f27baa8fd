"""Where the classes of diffusers put the nodes of a run: one rule for each kind of law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..samplers import from_diffusers_config
from ..schedules import EDM, FlowMatching, Grid, Schedule, VPDiscrete
from ..schedules.base import Float, alpha_sigma
from ..schedules.spacing import SPACINGS, Spacing

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What `set_timesteps` is asked for: a number of steps, or the nodes themselves.

    `mu` is the logarithm of a flow's shift (the shift itself if `time_shift_type` is "linear").
    """

    steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    mu: float | None = None

    @property
    def count(self) -> int:
        """The number of steps, or of the nodes given."""
        given = self.sigmas if self.sigmas is not None else self.timesteps
        return len(given) if given is not None else int(self.steps or 0)


# Where a run ends: in clean data; at the smallest level, which is then the last of the nodes that
# a spacing places; or at the first level of the table, and in clean data if that is taken already.
End = Literal["zero", "min", "first"]


def final_sigmas(config: Config) -> End:
    """The end that `final_sigmas_type` asks for."""
    kind = config.get("final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type must be 'zero' or 'sigma_min', got {kind!r}")
    return "zero" if kind == "zero" else "min"


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


def sigma_spacing(config: Config) -> str | None:
    """The key of the sigma spacing that a config asks for; ValueError if it asks for two."""
    asked = [key for key in SIGMA_SPACINGS if config.get(key)]
    if len(asked) > 1:
        raise ValueError(f"only one of {' and '.join(asked)} can be used")
    return asked[0] if asked else None


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
    """Nodes on a table of levels, told to the network as times, or as log(nsr) / 4.

    The latter is what `timestep_type` "continuous" means, and with v_prediction only.
    """
    grid = level_nodes(config, placement, request)
    if config.get("timestep_type") != "continuous" or config["prediction_type"] != "v_prediction":
        return grid
    return replace(grid, label=-0.25 * np.minimum(grid.lam, 1e3))


def level_nodes(config: Config, placement: Placement, request: Request) -> Grid:
    """Nodes at times of a rule, spaced in nsr = sigma / alpha, or given."""
    law, spacing = levels(config), sigma_spacing(config)
    table = level_ratios(law, placement.floor)
    if request.timesteps is not None and spacing is not None:
        raise ValueError(f"timesteps cannot be given with {spacing}: it places the nodes itself")
    end = final_sigmas(config) if "final_sigmas_type" in config else placement.end(config)

    def at(times: Float) -> Float:
        return np.interp(times, np.arange(len(table)), table)

    times = wanted_times(config, placement, law, request)
    last = 0.0 if end == "zero" else table[0]
    if request.sigmas is not None:
        given = np.asarray(request.sigmas, dtype=np.float64)
        return placed(law, closed(given, 0.0) if end == "zero" else given)
    if config.get("interpolation_type") == "log_linear" and spacing is None:
        nsr = spaced(SPACINGS["exponential"], table[-1], table[0], request.count, "min")
        return placed(law, nsr)
    if spacing is None:
        if end == "min" and at(times)[-1] == last:
            times = wanted_times(config, replace(placement, ahead=True), law, request)
        return placed(law, closed(at(times), last), np.append(times, law.t_zero))
    high, low = at(times[[0, -1]]) if placement.within else table[[-1, 0]]
    high, low = config.get("sigma_max") or high, config.get("sigma_min") or low
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


def wanted_times(config: Config, placement: Placement, law: VPDiscrete, request: Request) -> Float:
    """The times of the rule of a config, noisiest first (Lin et al. 2023, table 2).

    Rounded as the rule says, but not where more steps than levels would then repeat a time.
    """
    if request.timesteps is not None:
        return np.asarray(request.timesteps, dtype=np.float64)
    n, total = request.count, int(law.t_max) + 1
    if config.get("lambda_min_clipped", -np.inf) > -np.inf:
        total = int((law.lam(np.arange(total)) >= config["lambda_min_clipped"]).sum())
    points = n + 1 if placement.ahead else n
    offset = config.get("steps_offset", 0)
    match config.get("timestep_spacing", "linspace"):
        case "linspace":
            exact = np.linspace(0, total - 1, points)[::-1]
            times = np.round(exact) if placement.whole else exact
        case "leading":
            exact = np.arange(points)[::-1] * (total / points) + offset
            times = np.arange(points)[::-1] * float(total // points) + offset
        case "trailing":
            exact = np.arange(total, 0, -(law.t_max + 1) / n) - 1
            times = np.round(exact + 1) - 1
        case rule:
            raise ValueError(
                f"timestep_spacing must be 'linspace', 'leading' or 'trailing', got {rule!r}"
            )
    return (exact if len(np.unique(times)) < len(times) else times)[:n]


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


def flow_shift(config: Config, mu: float | None) -> Callable[[Float], Float]:
    """The map s -> k s / (1 + (k - 1) s) of a config, k from `mu` where shifting is dynamic."""
    if not config.get("use_dynamic_shifting"):
        k = float(config["shift"] if "shift" in config else config["flow_shift"])
    elif mu is None:
        raise ValueError("use_dynamic_shifting: set_timesteps needs mu, which sets the shift")
    else:
        k = float(mu if config["time_shift_type"] == "linear" else np.exp(mu))
    return lambda s: k * s / (1 + (k - 1) * s)


def flow_nodes(config: Config, placement: Placement, request: Request) -> Grid:
    """Nodes of a flow, x = (1 - s) x0 + s eps, told to the network as s times the levels."""
    total, n = config["num_train_timesteps"], request.count
    shift, spacing = flow_shift(config, request.mu), sigma_spacing(config)
    end = final_sigmas(config) if "final_sigmas_type" in config else placement.end(config)
    after, before = placement.flow_ends
    s: Float
    if request.sigmas is not None:
        given = np.asarray(request.sigmas, dtype=np.float64)
        s = shift(given[:-1] if given[-1] == 0 else given)
    elif request.timesteps is not None:
        s = np.asarray(request.timesteps, dtype=np.float64) / total
    else:
        points = n + 1 if placement.ahead or end == "min" else n
        low = 1 if end == "min" else before
        s = np.linspace(1 - after / total, low / total, points)
        s = shift(s if end == "min" else s[:n])
    if config.get("shift_terminal"):
        s = 1 - (1 - s) * (1 - config["shift_terminal"]) / (1 - s[-1])
    if spacing is not None and placement.ahead:
        # Classes of both worlds space the levels of their table, as sigma / alpha.
        high, low = levels(config).nsr([total - 1, 0])
        high, low = config.get("sigma_max") or high, config.get("sigma_min") or low
        nsr = spaced(SIGMA_SPACINGS[spacing], high, low, n, end)
        s = nsr / (1 + nsr)
    elif spacing is not None:
        s = spaced(SIGMA_SPACINGS[spacing], s[0], s[-1], n, end)
    elif end != "min" or request.steps is None:
        s = closed(s, 0.0)
    s = single(np.minimum(s, placement.flow_max))
    label = s * total
    if request.timesteps is not None:
        label = np.append(np.asarray(request.timesteps, dtype=np.float64), 0.0)
    if config.get("invert_sigmas"):
        label = total - label
    return at_levels(FlowMatching(), s, label)


def at_levels(law: Schedule, times: Float, label: Float) -> Grid:
    """Nodes at times of a law, under labels of their own."""
    return replace(Grid.from_times(law, times), label=label)


def edm_nodes(config: Config, request: Request, label: Callable[[Float], Float]) -> Grid:
    """Nodes between sigma_max and sigma_min, x = x0 + sigma eps.

    What EDM pipelines pass as sigmas is a ramp from 0 to 1, which is placed between the two.
    """
    high, low = config["sigma_max"], config["sigma_min"]
    rule = Spacing("nsr", rho=config["rho"])
    if config["sigma_schedule"] == "exponential":
        rule = SPACINGS["exponential"]
    elif config["sigma_schedule"] != "karras":
        raise ValueError(
            f"sigma_schedule must be 'karras' or 'exponential', got {config['sigma_schedule']!r}"
        )
    if request.sigmas is None:
        sigma = spaced(rule, high, low, request.count, final_sigmas(config))
    else:
        ramp = np.asarray(request.sigmas, dtype=np.float64)
        a, b = high ** (1 / rule.rho), low ** (1 / rule.rho)
        power = (a + ramp * (b - a)) ** rule.rho if np.isfinite(rule.rho) else None
        sigma = power if power is not None else high * (low / high) ** ramp
        sigma = closed(sigma, 0.0)
    sigma = single(sigma)
    return at_levels(EDM(low, high), sigma, label(sigma))


def ipndm_nodes(config: Config, request: Request) -> Grid:
    """The nodes of IPNDM: sigma = sin(pi u / 2)^2 on uniform u, alpha^2 + sigma^2 = 1."""
    if config.get("trained_betas") is not None:
        sigma = np.asarray(config["trained_betas"], dtype=np.float64)
    else:
        sigma = np.square(np.sin(np.linspace(1, 0, request.count + 1) * np.pi / 2))
    alpha = np.sqrt(1 - sigma**2)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    time = np.arctan2(sigma, alpha) / np.pi * 2
    return Grid(time, alpha, sigma, lam, time)
