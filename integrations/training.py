"""The noise levels that a network is trained on, and where pipelines start from."""

from __future__ import annotations

import numpy as np

from ..schedules.base import Float, alpha_sigma
from .families import FAMILIES, law_of
from .nodes import continuous, edm_nodes, ipndm_nodes, level_ratios, levels
from .request import Config, Request


def table_of_alphas(config: Config) -> Float:
    """alpha^2 of the table of levels of a config, float64."""
    return 1 / (1 + level_ratios(levels(config), FAMILIES[config["like"]].placement.floor) ** 2)


def training_levels(config: Config, labels: Float) -> tuple[Float, Float]:
    """(alpha, sigma) of the labels that a network is trained with, in the form of the states."""
    family = FAMILIES[config["like"]]
    match law_of(config):
        case "flow":
            sigma = np.asarray(labels, dtype=np.float64) / config["num_train_timesteps"]
            sigma = 1 - sigma if config.get("invert_sigmas") else sigma
            return 1 - sigma, sigma
        case "edm":
            sigma = family.told.sigma(labels)
            return np.ones_like(sigma), sigma
        case "ipndm":
            return np.cos(labels * np.pi / 2), np.sin(labels * np.pi / 2)
    table = levels(config)
    lam = -4 * labels if continuous(config) else table.lam(labels.clip(table.t_min, table.t_max))
    return alpha_sigma(lam, "edm" if family.scaled else "vp")


def training_nodes(config: Config) -> tuple[Float, Float]:
    """(labels [T], what diffusers calls sigma [T + 1]) of all levels of training, falling to 0."""
    total = int(config.get("num_train_timesteps", 1000))
    match law_of(config):
        case "flow":
            sigma = np.arange(total, -1, -1) / total
            inverted = bool(config.get("invert_sigmas"))
            return (total * (1 - sigma if inverted else sigma))[:-1], sigma
        case "edm":
            grid = edm_nodes(config, Request(total), FAMILIES[config["like"]].told)
            return grid.label[:-1], grid.sigma
        case "ipndm":
            grid = ipndm_nodes(config, Request(total))
            return grid.label[:-1], grid.nsr
    nsr = level_ratios(levels(config), FAMILIES[config["like"]].placement.floor)[::-1]
    labels = np.log(nsr) / 4 if continuous(config) else np.arange(len(nsr) - 1.0, -1, -1)
    return labels, np.append(nsr, 0.0)


def starting_scale(
    config: Config, largest: float, first: tuple[float, float] | None = None
) -> float:
    """The deviation of the state that a run starts from, `largest` its sigma.

    As diffusers has it: 1, or for classes whose states are x0 + sigma eps sigma, or that of noise
    and data together where their first node may be short of the noisiest level. So is that of
    tables, with (alpha, sigma) of their `first` node, which may be anywhere.
    """
    family = FAMILIES[config["like"]]
    if not family.scaled:
        usual = (1.0, config["sigma_max"]) if family.law == "edm" else (0.0, 1.0)
        return float(np.hypot(*(first or usual)))
    short = config.get("timestep_spacing") == "leading"
    if first is not None:
        short = largest < 0.999 * level_ratios(levels(config), family.placement.floor)[-1]
    return float(np.hypot(largest, 1.0)) if short else largest
