"""How diffusers reads a network: what it is shown, and what its output says about clean data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from torch import Tensor

from ..samplers.basis import Basis, affine, preconditioning
from ..samplers.diffusers_model import NAMES
from ..samplers.guidance import dynamic_threshold
from .families import FAMILIES
from .request import Config, Law


class Reading(NamedTuple):
    """How to use a network at one node: out = network(scale x), x0 = a x + b out."""

    scale: float
    a: float
    b: float


def reading(config: Config, law: Law, alpha: float, sigma: float) -> Reading:
    """How the network of a config is used on a state alpha x0 + sigma eps.

    Networks of EDM see c_in x, and x0 = c_skip x + c_out out (see `preconditioning`), where a
    v_prediction is F with the other sign. Others see states of the form that they were trained on:
    x0 + sigma eps is divided by sqrt(1 + sigma^2). There x0 solves out = p x + q x0 (see `affine`);
    v is read as x0 = alpha x - sigma out, whatever alpha^2 + sigma^2 is. Raises ValueError where
    the output says nothing about x0.
    """
    kind = config.get("prediction_type", "flow_prediction" if law == "flow" else "epsilon")
    if law == "edm":
        signs = {"epsilon": 1.0, "v_prediction": -1.0}
        if kind not in signs:
            raise ValueError(f"prediction_type {kind!r} is not one of {', '.join(signs)} of EDM")
        c_in, c_skip, c_out = preconditioning(sigma, config["sigma_data"])
        return Reading(c_in, c_skip, signs[kind] * c_out)
    if kind not in NAMES:
        raise ValueError(f"prediction_type {kind!r} is not one of {', '.join(NAMES)}")
    scale = 1 / float(np.hypot(alpha, sigma)) if FAMILIES[config["like"]].scaled else 1.0
    if kind == "v_prediction" or law == "ipndm":
        return Reading(scale, alpha * scale**2, -sigma * scale)
    p, q = affine(cast(Basis, NAMES[kind]), alpha * scale, sigma * scale)
    if q == 0:
        raise ValueError(
            f"the first node is pure noise (alpha = 0), where prediction_type {kind!r} says "
            f"nothing about x0: use v_prediction, or a schedule without zero terminal SNR"
        )
    # Networks of inverted sigmas point the other way along the flow.
    return Reading(scale, -p / q * scale, -1 / q if config.get("invert_sigmas") else 1 / q)


def clipping(config: Config) -> Callable[[Tensor], Tensor] | None:
    """What a config does to x0 before it is used, or None.

    `thresholding`: the quantile `dynamic_thresholding_ratio` of |x0| of each sample, at least 1 and
    at most `sample_max_value`, bounds it and is scaled to 1 (Saharia et al. 2022, "Imagen").
    `clip_sample`: a fixed bound.
    """
    if config.get("thresholding"):
        ratio = float(config.get("dynamic_thresholding_ratio", 0.995))
        largest = float(config.get("sample_max_value", 1.0))

        return partial(dynamic_threshold, quantile=ratio, most=largest)
    if config.get("clip_sample"):
        bound = float(config.get("clip_sample_range", 1.0))
        return lambda x0: x0.clamp(-bound, bound)
    return None
