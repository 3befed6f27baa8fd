"""Inference-time search: drivers that run a stochastic sampler towards a reward."""

from .catalogue import DRIVERS, Driver
from .chain import Chain, Meter, Reward
from .drivers import best_of, smc, svdd
from .files import load_tree, save_tree
from .growth import grow, grow_for
from .tree import Tree, TreeRules, draw, fittest
from .weights import Steered, effective, log_mean_exp, systematic

__all__ = [
    "DRIVERS",
    "Chain",
    "Driver",
    "Meter",
    "Reward",
    "Steered",
    "Tree",
    "TreeRules",
    "best_of",
    "draw",
    "effective",
    "fittest",
    "grow",
    "grow_for",
    "load_tree",
    "log_mean_exp",
    "save_tree",
    "smc",
    "svdd",
    "systematic",
]
