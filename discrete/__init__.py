"""Discrete diffusion: kernels and noise, jump tables and their builders, one executor."""

from . import chains, scores
from .chains import MarkovChain, divergence
from .exact import output_law
from .executor import LogScore, Trajectory, log_probability, record, sample, start, transition
from .kernel import Absorb, Kernel, Uniform, matrix, noised
from .noise import Geometric, LogLinear, Noise
from .solvers import Solver, build, nodes, solver
from .table import JumpTable, Node

__all__ = [
    "Absorb",
    "Geometric",
    "JumpTable",
    "Kernel",
    "LogLinear",
    "LogScore",
    "MarkovChain",
    "Node",
    "Noise",
    "Solver",
    "Trajectory",
    "Uniform",
    "build",
    "chains",
    "divergence",
    "log_probability",
    "matrix",
    "nodes",
    "noised",
    "output_law",
    "record",
    "sample",
    "scores",
    "solver",
    "start",
    "transition",
]
