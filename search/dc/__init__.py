"""Dynamic compensation: the ratios of DC-Solver, looked for on a model."""

from .config import RatioConfig
from .find import Course, greedy, joint
from .run import Found, course_of, find_ratios

__all__ = [
    "Course",
    "Found",
    "RatioConfig",
    "course_of",
    "find_ratios",
    "greedy",
    "joint",
]
