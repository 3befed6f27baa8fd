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
    NoiseSource,
    RowMap,
    State,
    StateHook,
    TimeMap,
    advance,
    initial,
    sample,
)
from .family import families, is_family, load_family, save_family
from .fit import fit
from .gaussian_data import GaussianData, load_pca
from .gaussian_fit import fit_gaussian
from .model_statistics import Batch, ModelStatistics, estimate_statistics
from .pndm import pndm
from .ratios import Ratios
from .recall import Denoiser
from .registry import Solver, build, build_within, solver, solvers
from .restarts import restarted
from .runge_kutta import dpm2, heun, rho_rk
from .sa import sa
from .streams import noise, random_labels
from .suggest_shift import Suggestion, suggest_time_shift
from .tableau import Expanded, Tableau, TooFewEvaluations
from .teleport import boost, gaussian_flow, skip_time, teleport
from .time_shift import TimeShift, scale_eps, time_shift
from .trace import trace
from .transforms import analytic_first_step, compensate, dualfast
from .unipc import unipc

__all__ = [
    "Basis",
    "Batch",
    "Denoiser",
    "Expanded",
    "GaussianData",
    "ModelStatistics",
    "NoiseSource",
    "Prediction",
    "Ratios",
    "RowMap",
    "Solver",
    "State",
    "StateHook",
    "Suggestion",
    "Tableau",
    "TimeMap",
    "TimeShift",
    "TooFewEvaluations",
    "adams",
    "advance",
    "analytic_first_step",
    "boost",
    "build",
    "build_within",
    "compensate",
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
    "dualfast",
    "estimate_statistics",
    "exact",
    "families",
    "fit",
    "fit_gaussian",
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
    "load_pca",
    "noise",
    "pndm",
    "random_labels",
    "restarted",
    "rho_rk",
    "sa",
    "sample",
    "save_family",
    "scale_eps",
    "sde_dpm",
    "skip_time",
    "solver",
    "solvers",
    "suggest_time_shift",
    "teleport",
    "time_shift",
    "trace",
    "unipc",
]
