"""Tables, the functions that build and transform them, the executor, and denoisers."""

from . import exact, guidance
from .ancestral import dpm2_ancestral, dpmpp_sde
from .basis import Basis
from .ddim import ddim, ddpm, lcm
from .deis import deis, ipndm
from .denoiser import Prediction, denoiser
from .diffusers_model import from_diffusers, from_diffusers_config
from .dpm import adams, dpm, dpm_singlestep, sde_dpm
from .dpm_v3 import dpm_v3
from .executor import (
    Denoiser,
    NoiseSource,
    State,
    StateHook,
    TimeMap,
    advance,
    initial,
    sample,
)
from .family import families, is_family, load_family, save_family
from .fit import fit
from .model_statistics import Batch, ModelStatistics, estimate_statistics
from .pndm import pndm
from .registry import Solver, build, build_within, solver, solvers
from .runge_kutta import dpm2, heun, rho_rk
from .sa import sa
from .streams import noise, random_labels
from .tableau import Expanded, Tableau, TooFewEvaluations
from .teleport import gaussian_flow, teleport
from .trace import trace
from .unipc import unipc

__all__ = [
    "Basis",
    "Batch",
    "Denoiser",
    "Expanded",
    "ModelStatistics",
    "NoiseSource",
    "Prediction",
    "Solver",
    "State",
    "StateHook",
    "Tableau",
    "TimeMap",
    "TooFewEvaluations",
    "adams",
    "advance",
    "build",
    "build_within",
    "ddim",
    "ddpm",
    "deis",
    "denoiser",
    "dpm",
    "dpm2",
    "dpm2_ancestral",
    "dpm_singlestep",
    "dpm_v3",
    "dpmpp_sde",
    "estimate_statistics",
    "exact",
    "families",
    "fit",
    "from_diffusers",
    "from_diffusers_config",
    "gaussian_flow",
    "guidance",
    "heun",
    "initial",
    "ipndm",
    "is_family",
    "lcm",
    "load_family",
    "noise",
    "pndm",
    "random_labels",
    "rho_rk",
    "sa",
    "sample",
    "save_family",
    "sde_dpm",
    "solver",
    "solvers",
    "teleport",
    "trace",
    "unipc",
]
