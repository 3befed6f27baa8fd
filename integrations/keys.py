"""The keys of a scheduler's config: which there are, what they contradict, where they come from."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from .. import samplers
from ..schedules.spacing import named
from .families import FAMILIES, all_defaults, defaults, recognised
from .nodes import replaces_method, sigma_spacing

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
    )
)

# Keys with a meaning for every class here, whether diffusers gave it to that class or not.
COMMON_KEYS = frozenset(
    (
        "prediction_type",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "use_flow_sigmas",
        "flow_shift",
        "use_dynamic_shifting",
        "time_shift_type",
        "shift_terminal",
        "final_sigmas_type",
        "lambda_min_clipped",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "sigma_min",
        "sigma_max",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "clip_sample",
        "clip_sample_range",
    )
)


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
    """The config: own keys, and those of the class in `like` with its defaults; checked."""
    like = own["like"]
    if like not in FAMILIES:
        close = get_close_matches(str(like), FAMILIES, n=3, cutoff=0.3) or list(FAMILIES)
        raise ValueError(f"like: {like!r} is not one of {', '.join(close)}")
    if own["compat"] not in (None, "diffusers"):
        raise ValueError(f"compat must be 'diffusers' or None, got {own['compat']!r}")
    if own["nfe"] is not None and (int(own["nfe"]) != own["nfe"] or own["nfe"] < 1):
        raise ValueError(f"nfe must be a whole number of at least 1, got {own['nfe']}")
    if own["solver"] is not None:
        samplers.solver(own["solver"])
    if own["spacing"] is not None:
        named(own["spacing"])
    given = {key: value for key, value in keys.items() if value is not None}
    known = set(defaults(like)) | COMMON_KEYS
    if foreign := [key for key in given if key not in known]:
        raise ValueError(f"{', '.join(foreign)}: {like} has no such key")
    for key, instead in ELSEWHERE.items():
        if key in given:
            raise ValueError(f"{key}: {instead}")
    if given.get("use_flow_sigmas") and FAMILIES[like].scaled:
        raise ValueError(
            f"use_flow_sigmas: the states of {like} are x0 + sigma eps, those of a flow are not; "
            f"choose a class like DPMSolverMultistepScheduler"
        )
    chosen = [name for name in ("solver", "tableau", "compat") if own[name] is not None]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} contradict each other: give one of them")
    base = dict(defaults(like))
    if replaces_method(own):
        if clash := [key for key in given if key in METHOD_KEYS]:
            raise ValueError(
                f"{', '.join(clash)}: these keys say how to step, and so does {chosen[0]}; options "
                f"of a named solver go into solver_options"
            )
        base = {key: value for key, value in base.items() if key not in METHOD_KEYS}
    sigma_spacing({**base, **given})
    return {**own, **base, **given}


def merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a scheduler from a config of any class, `overrides` on top."""
    if "like" in config and config.get("_class_name") not in FAMILIES:
        given = own_keys(config)
    else:
        given = translated(config, overrides.get("like"))
    dropped = set[str]()
    if replaces_method(overrides):
        dropped |= METHOD_KEYS | {"solver", "tableau", "compat"}
    for name in ("solver", "spacing"):
        # Options belong to the name that they were given with.
        dropped |= {f"{name}_options"} if name in overrides else set()
    kept = {key: value for key, value in given.items() if key not in dropped}
    return {**kept, **overrides}


def own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config of ours, without what it gained where other classes had it."""
    known = {*OWN_KEYS, *COMMON_KEYS, *defaults(config["like"])} - set(config.get(UNSET, ()))
    return {key: value for key, value in config.items() if key in known}


def translated(config: Mapping[str, Any], like: str | None) -> dict[str, Any]:
    """The keys of another class's config, and that class under `like`."""
    found = [like] if like is not None else recognised(config)
    if not found:
        raise ValueError(
            f"this config is of no scheduler class that is known ({config.get('_class_name')}); "
            f"name one with like=, one of {', '.join(FAMILIES)}"
        )
    if len(found) > 1:
        warnings.warn(
            f"this config may be of {' or '.join(found)}; taking the first. Say which with like=",
            stacklevel=4,
        )
    known = defaults(found[0])
    return {"like": found[0], **{key: value for key, value in config.items() if key in known}}
