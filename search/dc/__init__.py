"""Dynamic compensation: the ratios of DC-Solver, looked for on a model."""

from .config import RatioConfig
from .find import Course, end_error, greedy, joint
from .run import Found, course_of, find_ratios, taught

__all__ = [
    "Course",
    "Found",
    "RatioConfig",
    "course_of",
    "end_error",
    "find_ratios",
    "greedy",
    "joint",
    "taught",
]
