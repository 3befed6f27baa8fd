"""Solver schedules: the space that is searched, and many of them evaluated side by side."""

from .population import population_images
from .presets import PRESETS, preset
from .ruler import Ruler
from .schedule import SolverSchedule, Step, Update
from .space import Space

__all__ = [
    "PRESETS",
    "Ruler",
    "SolverSchedule",
    "Space",
    "Step",
    "Update",
    "population_images",
    "preset",
]
