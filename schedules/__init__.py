"""Noise schedules (the law of alpha and sigma) and grids (the nodes of a run)."""

from .base import Schedule
from .edm import EDM
from .flow import FlowMatching
from .grid import Grid, Node
from .placed import Placed
from .spacing import SPACINGS, Spacing, grid
from .vp import VPCosine, VPDiscrete, VPLinear, betas, zero_terminal_snr

__all__ = [
    "EDM",
    "SPACINGS",
    "FlowMatching",
    "Grid",
    "Node",
    "Placed",
    "Schedule",
    "Spacing",
    "VPCosine",
    "VPDiscrete",
    "VPLinear",
    "betas",
    "grid",
    "zero_terminal_snr",
]
