"""Dynamic compensation: the ratios of DC-Solver, looked for on a model."""

from .config import RatioConfig
from .find import Course, end_error, greedy, joint
from .run import Found, find_ratios

__all__ = ["Course", "Found", "RatioConfig", "end_error", "find_ratios", "greedy", "joint"]
