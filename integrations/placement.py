"""How a class of diffusers places its nodes, where its config leaves that open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..schedules.base import Float
from ..schedules.spacing import SPACINGS, Spacing
from .request import Config

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


def spaced(rule: Spacing, high: float, low: float, n: int, end: End) -> Float:
    """n + 1 values of a rule: from high to low and then zero, or all of them from high to low."""
    return rule.place(high, low, n + 1) if end == "min" else np.append(rule.place(high, low, n), 0)


def closed(nsr: Float, last: float) -> Float:
    """Append the last node: `last`, or clean data if that would repeat the node before."""
    if nsr[-1] == 0:
        return nsr
    return np.append(nsr, last if last < nsr[-1] else 0.0)


def single(sigmas: Float) -> Float:
    """The nearest float32 values: a pipeline that reads `sigmas` reads the very nodes."""
    return sigmas.astype(np.float32).astype(np.float64)
