"""What a diffusers scheduler config says about a network: its schedule and its prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..schedules import EDM, FlowMatching, Schedule, VPDiscrete, betas, zero_terminal_snr
from ..schedules.base import Float
from .denoiser import NetworkDenoiser, Prediction, denoiser

NAMES: dict[str, Prediction] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def from_diffusers_config(config: Mapping[str, Any]) -> tuple[Schedule, Prediction]:
    """The noise schedule and the prediction type of a diffusers scheduler config.

    Flow configs (a `shift`, or `use_flow_sigmas`) give FlowMatching, EDM configs (`sigma_data`) EDM
    with prediction "edm", all others VPDiscrete from `trained_betas` or the beta keys. Raises
    ValueError naming a value it does not know.
    """
    flow = bool(config.get("use_flow_sigmas")) or "shift" in config
    kind = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    if kind not in NAMES:
        raise ValueError(f"prediction_type {kind!r} is not one of {', '.join(NAMES)}")
    if "sigma_data" in config:
        if kind != "epsilon":
            raise ValueError(
                f"EDM configs are supported with prediction_type 'epsilon', not {kind!r}"
            )
        schedule = EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0))
        return schedule, "edm"
    if flow:
        if config.get("use_dynamic_shifting"):
            raise ValueError(
                "use_dynamic_shifting: the shift depends on the image size; compute it and give "
                "FlowMatching(shift) to `denoiser` yourself"
            )
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return FlowMatching(float(shift)), NAMES[kind]
    if config.get("trained_betas") is not None:
        table: Float = np.asarray(config["trained_betas"], dtype=np.float64)
    else:
        table = betas(
            config.get("beta_schedule", "linear"),
            config.get("num_train_timesteps", 1000),
            config.get("beta_start", 1e-4),
            config.get("beta_end", 0.02),
        )
    if config.get("rescale_betas_zero_snr"):
        return VPDiscrete(alphas_cumprod=zero_terminal_snr(np.cumprod(1 - table))), NAMES[kind]
    return VPDiscrete(table), NAMES[kind]


def from_diffusers(network: Any, config: Mapping[str, Any], **kwargs: Any) -> NetworkDenoiser:
    """A denoiser from a diffusers model and a scheduler config.

    The model is called as `network(x, timestep, **kwargs)`: UNet2DModel (`class_labels`),
    UNet2DConditionModel (`encoder_hidden_states`) and transformers of the DiT kind. The input is
    cast to the model's own dtype. Transformers that name their inputs otherwise can be wrapped in a
    lambda and given to `denoiser`.
    """
    schedule, prediction = from_diffusers_config(config)
    options = {"sigma_data": config["sigma_data"]} if "sigma_data" in config else {}
    return denoiser(
        network, schedule, prediction, dtype=getattr(network, "dtype", None), **options, **kwargs
    )
