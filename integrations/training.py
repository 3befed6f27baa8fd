"""The noise levels that a network is trained on, and where pipelines start from."""

from __future__ import annotations

import numpy as np

from ..schedules.base import Float, alpha_sigma
from .families import FAMILIES, angle, law_of
from .nodes import Config, Request, edm_nodes, ipndm_nodes, level_ratios, levels


def table_of_alphas(config: Config) -> Float:
    """alpha^2 of the table of levels of a config, float64."""
    return 1 / (1 + level_ratios(levels(config), FAMILIES[config["like"]].placement.floor) ** 2)


def training_levels(config: Config, labels: Float) -> tuple[Float, Float]:
    """(alpha, sigma) of the labels that a network is trained with, in the form of the states."""
    family = FAMILIES[config["like"]]
    match law_of(config):
        case "flow":
            sigma = np.asarray(labels, dtype=np.float64) / config["num_train_timesteps"]
            return 1 - sigma, sigma
        case "edm":
            sigma = np.tan(labels * np.pi / 2) if family.label is angle else np.exp(4 * labels)
            return np.ones_like(sigma), sigma
        case "ipndm":
            return np.cos(labels * np.pi / 2), np.sin(labels * np.pi / 2)
    table = levels(config)
    lam = table.lam(np.clip(labels, table.t_min, table.t_max))
    return alpha_sigma(lam, "edm" if family.scaled else "vp")


def training_sigmas(config: Config) -> Float:
    """What diffusers calls sigma, of all levels that a network is trained on, falling, and zero."""
    total = int(config.get("num_train_timesteps", 1000))
    match law_of(config):
        case "flow":
            return np.arange(total, -1, -1) / total
        case "edm":
            return edm_nodes(config, Request(total), FAMILIES[config["like"]].label).sigma
        case "ipndm":
            return ipndm_nodes(config, Request(total)).nsr
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
