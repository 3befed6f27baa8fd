"""Tables learned from the samples of better ones."""

from .config import TableConfig
from .gauss_newton import refine
from .learn import Learned, learn_tables
from .nodes import place
from .teacher import Teacher

__all__ = ["Learned", "TableConfig", "Teacher", "learn_tables", "place", "refine"]
