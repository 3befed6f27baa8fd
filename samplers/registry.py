"""Solvers by name: one line each. A new solver is a builder and a line in `SOLVERS`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..schedules import Grid
from .ddim import ddim, ddpm
from .deis import deis, ipndm
from .dpm import adams, dpm, dpm_singlestep, sde_dpm
from .pndm import pndm
from .runge_kutta import dpm2, heun, rho_rk
from .sa import sa
from .tableau import Tableau
from .unipc import unipc


@dataclass(frozen=True)
class Solver:
    """A builder with its options filled in.

    `order` is the order of convergence (of the mean, weak order for stochastic solvers) without
    lowering at the end; `aliases` are the names of other programs.
    """

    name: str
    order: int
    description: str
    builder: Callable[..., Tableau]
    options: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def __call__(self, grid: Grid, **options: Any) -> Tableau:
        """Build on a grid; `options` override those of the entry."""
        return self.builder(grid, **{**self.options, **options}).renamed(self.name)


def entries() -> list[Solver]:
    """All solvers, in the order they are shown."""
    ends = "AB through {} outputs"
    rows = [
        Solver("ddim", 1, "DDIM, the Euler method in sigma / alpha", ddim, {},
               ("euler", "k_euler", "DDIMScheduler", "EulerDiscreteScheduler",
                "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "dpmpp-1m", "dpm-1")),
        Solver("ddpm", 1, "DDPM ancestral sampling, the SDE to first order", ddpm, {},
               ("euler-ancestral", "euler_a", "k_euler_ancestral", "DDPMScheduler",
                "EulerAncestralDiscreteScheduler", "sde-dpmpp-1m")),
        *[Solver(f"dpmpp-{p}m", 2, text, dpm, {"order": p}, names)
          for p, text, names in (
              (2, "DPM-Solver++(2M), midpoint form",
               ("DPM++ 2M", "k_dpmpp_2m", "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")),
              (3, "DPM-Solver++(3M) as released (order 2; see ab-3)", ("DPM++ 3M",)))],
        Solver("dpmpp-2m-heun", 2, "DPM-Solver++(2M), exact second order", dpm,
               {"order": 2, "form": "heun"}),
        *[Solver(f"dpm-{p}m", 2, f"DPM-Solver({p}M) in eps, as released", dpm,
                 {"order": p, "prediction": "eps"}) for p in (2, 3)],
        *[Solver(f"dpmpp-{p}s", p, f"DPM-Solver++({p}S), singlestep on the nodes of the grid",
                 dpm_singlestep, {"order": p}, names)
          for p, names in ((2, ("DPM++ 2S", "DPMSolverSinglestepScheduler")), (3, ()))],
        *[Solver(f"dpm-{p}s", p, f"DPM-Solver({p}S) in eps, singlestep", dpm_singlestep,
                 {"order": p, "prediction": "eps"}, names)
          for p, names in ((2, ()), (3, ("dpm-fast", "k_dpm_fast")))],
        *[Solver(f"sde-dpmpp-{p}m", 2, f"SDE-DPM-Solver++({p}M), exact constants", sde_dpm,
                 {"order": p}, names)
          for p, names in ((2, ("DPM++ 2M SDE", "k_dpmpp_2m_sde")),
                           (3, ("DPM++ 3M SDE", "k_dpmpp_3m_sde")))],
        *[Solver(f"ab-{p}", p, "exponential " + ends.format(p) + ", exact in x0", adams,
                 {"order": p}, names)
          for p, names in ((2, ()), (3, ("dpmpp-3m-exact",)), (4, ()), (5, ()))],
        *[Solver(f"deis-{p}", p, "DEIS in log rho: exponential " + ends.format(p) + " in eps",
                 adams, {"order": p, "prediction": "eps"}, names)
          for p, names in ((2, ("DEISMultistepScheduler",)), (3, ("deis",)), (4, ()))],
        *[Solver(f"deis-tab{p}", p, "DEIS tAB, polynomial in time through {} outputs".format(p), deis,
                 {"order": p, "variable": "time"}) for p in (2, 3, 4)],
        *[Solver(f"deis-rhoab{p}", p, "DEIS rhoAB, polynomial in rho through {} outputs".format(p),
                 deis, {"order": p, "variable": "rho"}, names)
          for p, names in ((2, ()), (3, ()), (4, ("lms", "k_lms", "LMSDiscreteScheduler")))],
        *[Solver(f"unip-{p}", p, f"UniP-{p}, predictor only", unipc, {"order": p, "corrector": False})
          for p in (2, 3, 4)],
        *[Solver(f"unipc-{p}", p + 1, f"UniPC-{p} with its free corrector (bh2)", unipc, {"order": p}, names)
          for p, names in ((1, ()), (2, ("UniPCMultistepScheduler",)), (3, ("unipc", "uni_pc")), (4, ()))],
        *[Solver(f"ipndm-{p}", 2, f"iPNDM through {p} outputs; weights of a uniform grid", ipndm,
                 {"order": p}, names)
          for p, names in ((2, ()), (3, ()), (4, ("ipndm", "IPNDMScheduler")))],
        Solver("pndm", 2, "PNDM, first step repeated (PLMS)", pndm, {}, ("plms", "PNDMScheduler")),
        Solver("pndm-rk4", 2, "PNDM, three pseudo Runge-Kutta steps first", pndm, {"warmup": "rk4"}),
        *[Solver(f"sa-{p}", 2, f"SA-Solver, predictor {p} and corrector {c} outputs, tau = 1", sa,
                 {"predictor": p, "corrector": c}, names)
          for p, c, names in ((2, 2, ("SASolverScheduler",)), (3, 4, ("sa-solver",)))],
        Solver("heun", 2, "Heun in sigma / alpha, 2 evaluations a step", heun, {},
               ("k_heun", "HeunDiscreteScheduler", "deis-rho-heun")),
        Solver("heun-flow", 2, "Heun in the sigma of a flow, 2 evaluations a step", rho_rk,
               {"method": "heun", "variable": "flow"}, ("FlowMatchHeunDiscreteScheduler",)),
        Solver("deis-rho-kutta3", 3, "Kutta's third order in rho, 3 evaluations a step", rho_rk,
               {"method": "kutta3"}),
        Solver("deis-rho-rk4", 4, "classical Runge-Kutta in rho, 4 evaluations a step", rho_rk,
               {"method": "rk4"}),
        Solver("dpm-2", 2, "DPM-Solver-2, a midpoint inserted in every step", dpm2, {},
               ("k_dpm_2", "DPM2", "KDPM2DiscreteScheduler")),
    ]
    return rows


SOLVERS: dict[str, Solver] = {solver.name: solver for solver in entries()}


def key(name: str) -> str:
    """Fold case, blanks, dashes and underscores; '+' reads as p."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


INDEX: dict[str, str] = {
    key(alias): solver.name
    for solver in SOLVERS.values()
    for alias in (solver.name, *solver.aliases)
}


def solvers() -> list[Solver]:
    """All registered solvers."""
    return list(SOLVERS.values())


def solver(name: str) -> Solver:
    """The solver of that name or alias; ValueError suggests names."""
    if key(name) not in INDEX:
        close = [known for known in SOLVERS if key(name)[:4] == key(known)[:4]]
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(close or SOLVERS)}")
    return SOLVERS[INDEX[key(name)]]


def build(name: str, grid: Grid, **options: Any) -> Tableau:
    """The table of a named solver on a grid; `options` are those of its builder.

    Names and aliases are those of `solvers()`, spelled with any case and any of "-_ ". Raises
    ValueError for an unknown name and TypeError for an option the builder does not have.
    """
    return solver(name)(grid, **options)


def build_within(name: str, nfe: int, make_grid: Callable[[int], Grid], **options: Any) -> Tableau:
    """The table with the most steps that costs at most `nfe` evaluations.

    `make_grid(steps)` makes the grid; solvers with several evaluations a step get fewer steps.
    Raises ValueError when even one step costs more.
    """
    for steps in range(nfe, 0, -1):
        table = build(name, make_grid(steps), **options)
        if table.nfe <= nfe:
            return table
    raise ValueError(f"{name}: one step takes more than {nfe} network evaluations")
