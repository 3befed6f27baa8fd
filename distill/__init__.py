"""Samplers that learn from better ones."""

from .gauss_newton import refine
from .nodes import place
from .teacher import Teacher

__all__ = ["Teacher", "place", "refine"]
