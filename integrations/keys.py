"""The keys of a scheduler's config: which there are, what they contradict, where they come from."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..samplers.diffusers_model import NAMES
from ..schedules import Placed
from ..schedules.spacing import grid
from ..schedules.spacing import named as named_spacing
from .families import FAMILIES, all_defaults, defaults
from .methods import check_options
from .placement import SIGMA_SPACINGS, sigma_spacing
from .request import Law, replaces_method

# Keys of our own, beside those of diffusers.
OWN_KEYS = (
    "like",
    "solver",
    "solver_options",
    "spacing",
    "spacing_options",
    "nfe",
    "tableau",
    "compat",
)

# Where ConfigMixin keeps the names of the keys that nobody has set.
UNSET = "_use_default_values"

# Keys that say how to step; a named solver or a table takes their place.
METHOD_KEYS = frozenset(
    (
        "solver_order",
        "algorithm_type",
        "solver_type",
        "lower_order_final",
        "euler_at_final",
        "predict_x0",
        "disable_corrector",
        "solver_p",
        "predictor_order",
        "corrector_order",
        "tau_func",
        "variance_type",
        "skip_prk_steps",
        "stochastic_sampling",
        "noise_sampler_seed",
    )
)

# Keys that say where the nodes are; a named spacing or a table takes their place.
NODE_KEYS = frozenset(SIGMA_SPACINGS) | {
    "timestep_spacing",
    "steps_offset",
    "lambda_min_clipped",
    "shift_terminal",
    "interpolation_type",
    "sigma_schedule",
    "rho",
}

# Keys with a meaning for every class of a law, whether diffusers gave it to that class or not.
CLIPPING = {
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "clip_sample",
    "clip_sample_range",
}
ANY = CLIPPING | {"prediction_type", "final_sigmas_type"}
SPACED = set(SIGMA_SPACINGS)
FLOWING = {"use_dynamic_shifting", "time_shift_type", "shift_terminal"}
LAW_KEYS: dict[Law, frozenset[str]] = {
    "table": frozenset(
        ANY
        | SPACED
        | FLOWING
        | {"use_flow_sigmas", "flow_shift", "lambda_min_clipped", "timestep_spacing"}
        | {"steps_offset", "rescale_betas_zero_snr", "sigma_min", "sigma_max"}
    ),
    "flow": frozenset(ANY | SPACED | FLOWING),
    "edm": frozenset(ANY),
    "ipndm": frozenset(CLIPPING),
}

# What a key may be.
CHOICES: dict[str, tuple[str, ...]] = {
    "prediction_type": tuple(NAMES),
    "algorithm_type": (
        "dpmsolver",
        "dpmsolver++",
        "sde-dpmsolver",
        "sde-dpmsolver++",
        "deis",
        "data_prediction",
        "noise_prediction",
    ),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    "timestep_type": ("discrete", "continuous"),
    "interpolation_type": ("linear", "log_linear"),
    "sigma_schedule": ("karras", "exponential"),
    "compat": ("diffusers",),
}

# What it may be in one class, of those that share the key and not its values.
DPM_TYPES = CHOICES["algorithm_type"][:4]
CLASS_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "DPMSolverMultistepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": DPM_TYPES,
    },
    "DPMSolverSinglestepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": DPM_TYPES,
    },
    "UniPCMultistepScheduler": {"solver_type": ("bh1", "bh2")},
    "DEISMultistepScheduler": {"solver_type": ("logrho",), "algorithm_type": ("deis",)},
    "SASolverScheduler": {"algorithm_type": ("data_prediction", "noise_prediction")},
    "EDMDPMSolverMultistepScheduler": {
        "solver_type": ("midpoint", "heun"),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    },
    "CosineDPMSolverMultistepScheduler": {"solver_type": ("midpoint", "heun")},
}

# Both say how to step, or where.
CONTRADICTIONS = (
    ("solver", "tableau"),
    ("solver", "compat"),
    ("tableau", "compat"),
    ("spacing", "tableau"),
    ("spacing", "compat"),
)

# What `schedules.grid` takes beside the number of steps and the spacing.
SPACING_OPTIONS = set(inspect.signature(grid).parameters) - {"schedule", "nfe", "spacing"}

# Keys that say nothing unless another is set, or one of several.
NEEDED: dict[str, tuple[str, ...]] = {
    "solver_options": ("solver",),
    "spacing_options": ("spacing",),
    "dynamic_thresholding_ratio": ("thresholding",),
    "sample_max_value": ("thresholding",),
    "clip_sample_range": ("clip_sample",),
}
# The same, for classes of a table only.
NEEDED_BY_TABLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("flow_shift", *FLOWING), ("use_flow_sigmas",)),
    **dict.fromkeys(("sigma_min", "sigma_max"), (*SPACED, "spacing", "tableau")),
}

# Keys that cannot mean here what they mean there, and what does.
ELSEWHERE = {
    "noise_sampler_seed": "noise comes from the generator that step is given",
    "solver_p": "name the solver in `solver`",
}


def with_all_keys(init: Callable[..., None]) -> Callable[..., None]:
    """Give a constructor with `**keys` the signature that ConfigMixin reads its keys from."""
    own = list(inspect.signature(init).parameters.values())[:-1]
    named = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
        for key in all_defaults()
    ]
    init.__signature__ = inspect.Signature([*own, *named])  # type: ignore[attr-defined]
    return init


def resolved(own: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The config: own keys, and those of the class in `like` with its defaults; checked.

    Raises ValueError for keys that the class does not have, values that are none of a key's, and
    keys that contradict each other; warns of those that say nothing without another.
    """
    like = own["like"]
    if like not in FAMILIES:
        close = get_close_matches(str(like), FAMILIES, n=3, cutoff=0.3) or list(FAMILIES)
        raise ValueError(f"like: {like!r} is not one of {', '.join(close)}")
    family = FAMILIES[like]
    given = {key: value for key, value in keys.items() if value is not None}
    known = set(defaults(like)) | LAW_KEYS[family.law]
    if foreign := [key for key in given if key not in known]:
        raise ValueError(f"{', '.join(foreign)}: {like} has no such key")
    for key, instead in ELSEWHERE.items():
        if key in given:
            raise ValueError(f"{key}: {instead}")
    if own["spacing"] is not None:
        own = {**own, "spacing": written_spacing(own["spacing"])}
    check_values(own, given)
    replaced = replaced_keys(own)
    if clash := [key for key in given if key in replaced]:
        what, names = ("how to step", ("solver", "tableau"))
        if clash[0] in NODE_KEYS:
            what, names = ("where the nodes are", ("spacing", "tableau"))
        chosen = next(name for name in names if own[name] is not None)
        raise ValueError(
            f"{clash[0]} and {chosen} both say {what}: give one of them; options go into "
            f"solver_options and spacing_options"
        )
    base = {key: value for key, value in defaults(like).items() if key not in replaced}
    config = {**own, **base, **given}
    if config.get("use_flow_sigmas") and family.scaled:
        raise ValueError(
            f"use_flow_sigmas: the states of {like} are x0 + sigma eps, those of a flow are not; "
            f"choose a class like DPMSolverMultistepScheduler"
        )
    sigma_spacing(config)
    warn_of_idle_keys(config, family.law)
    return config


def written_spacing(spacing: str | Path | Placed | Mapping[str, Any]) -> str | dict[str, Any]:
    """A spacing as a config holds it: a name, or the nodes of a file; ValueError for neither."""
    found = named_spacing(spacing)
    if isinstance(found, Placed):
        return found.to_dict()
    if not isinstance(spacing, str):
        raise ValueError(f"spacing: a config holds a name or placed nodes, got {spacing!r}")
    return spacing


def check_values(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError for values that are none of a key's, and own keys that contradict each other."""
    choices = {**CHOICES, **CLASS_CHOICES.get(own["like"], {})}
    for key, value in {**own, **given}.items():
        if value is not None and value not in choices.get(key, (value,)):
            raise ValueError(f"{key} must be one of {', '.join(choices[key])}, got {value!r}")
    nfe = own["nfe"]
    if nfe is not None and (type(nfe) is not int or nfe < 1):
        raise ValueError(f"nfe must be a whole number of at least 1, got {nfe!r}")
    if own["solver"] is not None:
        check_options(own["solver"], own["solver_options"] or {})
    if unknown := set(own["spacing_options"] or {}) - SPACING_OPTIONS:
        raise ValueError(
            f"spacing_options: {', '.join(sorted(unknown))} is none of "
            f"{', '.join(sorted(SPACING_OPTIONS))}"
        )
    for one, other in CONTRADICTIONS:
        if own[one] is not None and own[other] is not None:
            raise ValueError(f"{one} and {other} contradict each other: give one of them")
    foreign = [key for key in given if key not in defaults(own["like"])]
    if own["compat"] is not None and foreign:
        raise ValueError(f"compat='diffusers': {own['like']} has no {', '.join(foreign)}")


def replaced_keys(own: Mapping[str, Any]) -> frozenset[str]:
    """The keys whose place a named solver, a spacing or a table takes."""
    nodes = own.get("spacing") is not None or own.get("tableau") is not None
    methods = METHOD_KEYS if replaces_method(own) else frozenset[str]()
    return methods | (NODE_KEYS if nodes else frozenset[str]())


def warn_of_idle_keys(config: Mapping[str, Any], law: Law) -> None:
    """Warn of keys with a value of their own that say nothing without another key."""
    needed = {**NEEDED, **(NEEDED_BY_TABLES if law == "table" else {})}
    usual = {**all_defaults(), **defaults(config["like"])}
    for key, others in needed.items():
        said = config.get(key) not in (None, usual.get(key))
        if said and not any(config.get(other) for other in others):
            warnings.warn(
                f"{key}={config[key]!r} says nothing without {' or '.join(sorted(others))}",
                stacklevel=5,
            )


def own_names(like: str) -> set[str]:
    """The keys of a config of ours."""
    return {*OWN_KEYS, *LAW_KEYS[FAMILIES[like].law], *defaults(like)}
