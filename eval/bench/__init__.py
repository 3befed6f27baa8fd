"""Benchmarks: models x guidance x seeds x solvers x spacings x NFE."""

from .config import BenchConfig, PublishedConfig, ReferenceConfig, plural
from .contestant import Contestant, check_plan, contestant, prepare
from .plan import Cell, Panel, panels, plan
from .record import Result, Target
from .runner import Run, run_bench

__all__ = [
    "BenchConfig",
    "Cell",
    "Contestant",
    "Panel",
    "PublishedConfig",
    "ReferenceConfig",
    "Result",
    "Run",
    "Target",
    "check_plan",
    "contestant",
    "panels",
    "plan",
    "plural",
    "prepare",
    "run_bench",
]
