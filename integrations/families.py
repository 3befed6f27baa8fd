"""The scheduler classes of diffusers as data: their keys, where they put nodes, what they do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import numpy as np

from ..schedules.base import Float
from . import methods
from .nodes import Told
from .placement import End, Placement, final_sigmas
from .request import Config, Law


def quarter_log(sigma: Float) -> Float:
    """log(sigma) / 4, with -inf at 0."""
    with np.errstate(divide="ignore"):
        return 0.25 * np.log(sigma)


# c_noise of Karras et al. 2022, and the angle of Stable Audio, atan(sigma) / (pi / 2).
C_NOISE = Told(quarter_log, lambda label: np.exp(4 * label))
ANGLE = Told(lambda sigma: np.arctan(sigma) / np.pi * 2, lambda label: np.tan(label * np.pi / 2))


@dataclass(frozen=True)
class Family:
    """One scheduler class of diffusers.

    `scaled` says that its pipelines work on states x0 + sigma eps of a network that wants them
    variance preserving. `told` is what an EDM network is told at a sigma. `defaults` are those of
    classes that cannot be asked for them.
    """

    method: methods.Method
    law: Law = "table"
    placement: Placement = field(default_factory=Placement)
    scaled: bool = False
    told: Told = C_NOISE
    defaults: Mapping[str, Any] = field(default_factory=dict)


def first_level(config: Config) -> End:
    """The end of classes that stop at the first level of their table."""
    return "first"


def alpha_one(config: Config) -> End:
    """The end that `set_alpha_to_one` asks for."""
    return "zero" if config["set_alpha_to_one"] else "first"


def to_zero(config: Config) -> End:
    """The end of classes that always run to clean data."""
    return "zero"


# A terminal SNR of zero is replaced by the smallest number of half precision, as diffusers does.
TINY = 2.0**-24
KARRAS, LU = "use_karras_sigmas", "use_lu_lambdas"
DPM = Placement(ahead=True, rounded=(KARRAS, LU), unless_cosine=True, floor=TINY, flow_ends=(1, 0))
STEPS = Placement(end=alpha_one)
SIGMAS = Placement(whole=False, within=True, end=to_zero)
FLOW = Placement(end=to_zero)
DPM_SDE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "noise_sampler_seed": None,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
COSINE_DEFAULTS = {
    "sigma_min": 0.3,
    "sigma_max": 500,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "prediction_type": "v_prediction",
    "rho": 7.0,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}

FAMILIES: dict[str, Family] = {
    "DPMSolverMultistepScheduler": Family(methods.dpm_multistep, placement=DPM),
    "DPMSolverSinglestepScheduler": Family(
        methods.dpm_singlestep,
        placement=Placement(ahead=True, rounded=(KARRAS,), flow_ends=(1, 0)),
    ),
    "UniPCMultistepScheduler": Family(
        methods.unipc,
        placement=Placement(ahead=True, rounded=(KARRAS,), floor=TINY, flow_max=1 - 1e-6),
    ),
    "DEISMultistepScheduler": Family(
        methods.deis,
        placement=Placement(ahead=True, rounded=(KARRAS,), flow_ends=(1, 0), end=first_level),
    ),
    "SASolverScheduler": Family(
        methods.sa,
        placement=Placement(ahead=True, rounded=(KARRAS,), flow_ends=(1, 0), end=first_level),
    ),
    "DDIMScheduler": Family(methods.ddim, placement=STEPS),
    "DDPMScheduler": Family(methods.ddpm, placement=Placement(end=to_zero)),
    "PNDMScheduler": Family(methods.pndm, placement=STEPS),
    "IPNDMScheduler": Family(methods.ipndm, law="ipndm"),
    "LMSDiscreteScheduler": Family(methods.lms, placement=SIGMAS, scaled=True),
    "EulerDiscreteScheduler": Family(
        methods.ddim,
        placement=Placement(whole=False, within=True, floor=TINY, end=final_sigmas),
        scaled=True,
    ),
    "EulerAncestralDiscreteScheduler": Family(
        methods.euler_ancestral,
        placement=Placement(whole=False, within=True, floor=TINY, end=to_zero),
        scaled=True,
    ),
    "HeunDiscreteScheduler": Family(methods.heun, placement=SIGMAS, scaled=True),
    "KDPM2DiscreteScheduler": Family(
        methods.dpm2,
        placement=Placement(whole=False, within=True, rounded=(KARRAS,), end=to_zero),
        scaled=True,
    ),
    "KDPM2AncestralDiscreteScheduler": Family(
        methods.dpm2_ancestral,
        placement=Placement(whole=False, within=True, rounded=(KARRAS,), end=to_zero),
        scaled=True,
    ),
    "DPMSolverSDEScheduler": Family(
        methods.dpmpp_sde, placement=SIGMAS, scaled=True, defaults=DPM_SDE_DEFAULTS
    ),
    "EDMEulerScheduler": Family(methods.ddim, law="edm"),
    "EDMDPMSolverMultistepScheduler": Family(methods.dpm_multistep, law="edm"),
    "CosineDPMSolverMultistepScheduler": Family(
        methods.dpm_multistep, law="edm", told=ANGLE, defaults=COSINE_DEFAULTS
    ),
    "FlowMatchEulerDiscreteScheduler": Family(methods.flow_euler, law="flow", placement=FLOW),
    "FlowMatchHeunDiscreteScheduler": Family(methods.flow_heun, law="flow", placement=FLOW),
}


def law_of(config: Config) -> Law:
    """The kind of noise levels that a config steps through."""
    return "flow" if config.get("use_flow_sigmas") else FAMILIES[config["like"]].law


@cache
def defaults(family: str) -> Mapping[str, Any]:
    """The keys of a class with their default values, as its constructor states them."""
    if FAMILIES[family].defaults:
        return FAMILIES[family].defaults
    parameters = inspect.signature(getattr(diffusers, family).__init__).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


@cache
def all_defaults() -> Mapping[str, Any]:
    """Every key of every class, with the default of the first class that has it."""
    merged: dict[str, Any] = {}
    for family in FAMILIES:
        merged = {**defaults(family), **merged}
    return merged
