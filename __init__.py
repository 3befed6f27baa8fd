"""fewstep: few-step sampling for diffusion models.

A sampler is a lower-triangular table of numbers (`Tableau`), built on a `Grid` of noise levels and
run by one executor, `sample`.
"""

from . import samplers, schedules
from .samplers import State, Tableau, advance, build, initial, noise, sample
from .schedules import Grid, grid

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "State",
    "Tableau",
    "advance",
    "build",
    "grid",
    "initial",
    "noise",
    "sample",
    "samplers",
    "schedules",
]
