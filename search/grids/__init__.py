"""Optimised grids: where the nodes of a run are best placed, for any solver."""

from .ays import bound_costs
from .config import AnyConfig, AYSConfig, GITSConfig, NonUniformConfig, config_of
from .gits import trajectory_costs
from .nonuniform import error_bound, nonuniform
from .paths import cheapest, length, shortest
from .run import Found, find_grids

__all__ = [
    "AYSConfig",
    "AnyConfig",
    "Found",
    "GITSConfig",
    "NonUniformConfig",
    "bound_costs",
    "cheapest",
    "config_of",
    "error_bound",
    "find_grids",
    "length",
    "nonuniform",
    "shortest",
    "trajectory_costs",
]
