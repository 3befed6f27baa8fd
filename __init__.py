"""fewstep: few-step sampling for diffusion models.

A sampler is a lower-triangular table of numbers (`Tableau`), built on a `Grid` of noise levels and
run by one executor, `sample`.
"""

# Pipelines look it up in the module that a scheduler names as its own.
from diffusers.schedulers.scheduling_utils import SchedulerMixin as SchedulerMixin

from . import integrations, samplers, schedules
from .integrations import TableauScheduler, restore, use
from .samplers import State, Tableau, advance, build, initial, noise, sample
from .schedules import Grid, grid

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "State",
    "Tableau",
    "TableauScheduler",
    "advance",
    "build",
    "grid",
    "initial",
    "integrations",
    "noise",
    "restore",
    "sample",
    "samplers",
    "schedules",
    "use",
]
