"""Where other programs meet samplers: the diffusers scheduler."""

from .scheduler import TableauScheduler

__all__ = ["TableauScheduler"]
