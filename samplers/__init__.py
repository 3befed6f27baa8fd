"""Tables, the functions that build and transform them, the executor, and denoisers."""

from . import exact, guidance
from .ancestral import dpm2_ancestral, dpmpp_sde
from .basis import Basis
from .ddim import ddim, ddpm, lcm
from .deis import deis, ipndm
from .denoiser import Prediction, denoiser
from .diffusers_model import from_diffusers, from_diffusers_config
from .dpm import adams, dpm, dpm_singlestep, sde_dpm
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
from .gaussian_data import GaussianData, load_pca
from .gaussian_fit import fit_gaussian
from .pndm import pndm
from .registry import Solver, build, build_within, solver, solvers
from .runge_kutta import dpm2, heun, rho_rk
from .sa import sa
from .streams import noise, random_labels
from .tableau import Expanded, Tableau, TooFewEvaluations
from .teleport import gaussian_flow, skip_time, teleport
from .trace import trace
from .unipc import unipc

__all__ = [
    "Basis",
    "Denoiser",
    "Expanded",
    "GaussianData",
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
    "dpmpp_sde",
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
    "rho_rk",
    "sa",
    "sample",
    "save_family",
    "sde_dpm",
    "skip_time",
    "solver",
    "solvers",
    "teleport",
    "trace",
    "unipc",
]
