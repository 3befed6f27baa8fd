"""Measuring samplers: distances, a converged reference, the benchmark and its report."""

from .bench import Counter, Result, Run, run_bench
from .card import Card, measure_model, write_card
from .config import BenchConfig, ReferenceConfig, SolverConfig
from .frechet import FrechetDistance, Moments, frechet_distance, half_split_distances, moments
from .generate import Draw, balanced, generate
from .images import dequantise, quantise, save_grid
from .plots import save_figure
from .reference import Reference, converge, rmse
from .report import matrix, title, write_report
from .subject import SUBJECTS, Subject, load_subject, pick_device

__all__ = [
    "SUBJECTS",
    "BenchConfig",
    "Card",
    "Counter",
    "Draw",
    "FrechetDistance",
    "Moments",
    "Reference",
    "ReferenceConfig",
    "Result",
    "Run",
    "SolverConfig",
    "Subject",
    "balanced",
    "converge",
    "dequantise",
    "frechet_distance",
    "generate",
    "half_split_distances",
    "load_subject",
    "matrix",
    "measure_model",
    "moments",
    "pick_device",
    "quantise",
    "rmse",
    "run_bench",
    "save_figure",
    "save_grid",
    "title",
    "write_card",
    "write_report",
]
