"""Where other programs meet samplers: diffusers and k-diffusion."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from . import kdiffusion
from .perturbed import perturbed
from .pipelines import restore, teleported, use
from .scheduler import TableauScheduler

__all__ = [
    "SchedulerMixin",
    "TableauScheduler",
    "kdiffusion",
    "perturbed",
    "restore",
    "teleported",
    "use",
]
