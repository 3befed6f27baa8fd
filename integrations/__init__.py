"""Where other programs meet samplers: diffusers and k-diffusion."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from . import kdiffusion
from .perturbed import perturbed
from .pipeline_denoiser import PipelineDenoiser, pipeline_denoiser
from .pipelines import restore, teleported, use
from .scheduler import TableauScheduler

__all__ = [
    "PipelineDenoiser",
    "SchedulerMixin",
    "TableauScheduler",
    "kdiffusion",
    "perturbed",
    "pipeline_denoiser",
    "restore",
    "teleported",
    "use",
]
