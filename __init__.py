"""fewstep: few-step sampling for diffusion models.

A sampler is a lower-triangular table of numbers (`Tableau`), built on a `Grid` of noise levels and
run by one executor, `sample`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import discrete, samplers, schedules
from .samplers import State, Tableau, advance, build, fit, initial, load_family, noise, sample
from .schedules import Grid, grid

if TYPE_CHECKING:
    from . import integrations
    from .integrations import SchedulerMixin as SchedulerMixin
    from .integrations import TableauScheduler, restore, use

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "State",
    "Tableau",
    "TableauScheduler",
    "advance",
    "build",
    "discrete",
    "fit",
    "grid",
    "initial",
    "integrations",
    "load_family",
    "noise",
    "restore",
    "sample",
    "samplers",
    "schedules",
    "use",
]

# Imported when it is asked for: diffusers takes seconds. Pipelines look up SchedulerMixin in the
# module that a scheduler names as its own.
LATER = ("SchedulerMixin", "TableauScheduler", "restore", "use")


def __getattr__(name: str) -> Any:
    if name != "integrations" and name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(".integrations", __name__)
    return module if name == "integrations" else getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
