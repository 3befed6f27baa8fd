"""Where other programs meet samplers: diffusers and k-diffusion."""

from . import kdiffusion
from .pipelines import restore, use
from .scheduler import TableauScheduler

__all__ = ["TableauScheduler", "kdiffusion", "restore", "use"]
