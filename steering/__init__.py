"""Inference-time search: drivers that run a stochastic sampler towards a reward."""

from .chain import Chain, Meter, Reward
from .drivers import best_of, smc, svdd
from .files import load_tree, save_tree
from .tree import Tree, TreeRules, draw, grow
from .weights import Steered, effective, log_mean_exp, systematic

__all__ = [
    "Chain",
    "Meter",
    "Reward",
    "Steered",
    "Tree",
    "TreeRules",
    "best_of",
    "draw",
    "effective",
    "grow",
    "load_tree",
    "log_mean_exp",
    "save_tree",
    "smc",
    "svdd",
    "systematic",
]
