"""Solvers by name: one line each. A new solver is a builder and a line in `CATALOGUE`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from inspect import signature
from typing import Any

from ..schedules import Grid
from .ancestral import dpm2_ancestral, dpmpp_sde
from .ddim import ddim, ddpm, lcm
from .deis import deis, ipndm
from .dpm import adams, dpm, dpm_singlestep, sde_dpm
from .dpm_v3 import dpm_v3
from .pndm import pndm
from .ratios import Ratios
from .runge_kutta import dpm2, heun, rho_rk
from .sa import sa
from .tableau import Tableau, TooFewEvaluations
from .transforms import analytic_first_step, compensate, dualfast
from .unipc import unipc


@dataclass(frozen=True)
class Solver:
    """A builder with its options filled in.

    `order` is the order of convergence without lowering at the end (the weak order on Gaussian data
    for stochastic solvers), 0 for one that converges with distilled networks only. `late` names the
    solver for a run that begins late, where this one has a warm-up that belongs to the start.
    """

    name: str
    order: int
    description: str
    builder: Callable[..., Tableau]
    options: Mapping[str, Any] = field(default_factory=dict)
    late: str | None = None

    @property
    def aliases(self) -> tuple[str, ...]:
        """What other programs call it."""
        return ALIASES.get(self.name, ())

    def __call__(self, grid: Grid, **options: Any) -> Tableau:
        """Build on a grid; `options` override those of the entry, or are `CHANGES`."""
        options = {**self.options, **options}
        own = {key: value for key, value in options.items() if key not in CHANGES}
        table = self.builder(grid, **own)
        for key, change in CHANGES.items():
            if key in options:
                value = options[key]
                said = value if isinstance(value, Mapping) else {change.first: value}
                table = change.apply(table, partial(self.predictor, grid, **own), said)
        # For the record: what JSON cannot hold, such as a function of time, by its representation.
        said = {
            k: v if isinstance(v, int | float | str | list) else repr(v) for k, v in options.items()
        }
        return table.renamed(self.name, options=said) if said else table.renamed(self.name)

    def predictor(self, grid: Grid, **options: Any) -> Tableau | None:
        """The table without its corrector, nor any of `CHANGES`; None for one that has none."""
        if "corrector" not in signature(self.builder).parameters:
            return None
        own = {key: value for key, value in options.items() if key not in CHANGES}
        return self.builder(grid, **{**self.options, **own, "corrector": False})


@dataclass(frozen=True)
class Change:
    """What may be done to the table of any solver, by the name of an option.

    `apply` takes the table, what makes the solver's without its corrector, and what is said of it:
    a value, which stands for the keyword `first`, or several by name.
    """

    first: str
    apply: Callable[[Tableau, Callable[[], Tableau | None], Mapping[str, Any]], Tableau]


def compensated(
    table: Tableau, predictor: Callable[[], Tableau | None], said: Mapping[str, Any]
) -> Tableau:
    """`compensate`, with ratios by the name of a file, and a corrector's outputs as they are."""
    how = dict(said)
    if isinstance(how.get("ratios"), str):
        how["ratios"] = Ratios.load(how["ratios"]).at(table.grid.nfe, how.pop("guidance", 1.0))
    return compensate(table, predictor=predictor(), **how)


def plainly(change: Callable[..., Tableau]) -> Any:
    """A change that needs the table alone."""
    return lambda table, predictor, said: change(table, **said)


CHANGES: dict[str, Change] = {
    "compensate": Change("ratios", compensated),
    "dualfast": Change("strength", plainly(dualfast)),
    "analytic_first_step": Change("guess", plainly(analytic_first_step)),
}

CATALOGUE: tuple[Solver, ...] = (
    Solver("ddim", 1, "DDIM, the Euler method in sigma / alpha", ddim),
    Solver("ddpm", 1, "DDPM ancestral sampling: the SDE to first order", ddpm),
    Solver("lcm", 0, "x0 and fresh noise at every step, for consistency models", lcm),
    Solver("dpmpp-2m", 2, "DPM-Solver++(2M), midpoint form", dpm, {"order": 2}),
    Solver("dpmpp-2m-heun", 2, "DPM-Solver++(2M), exact", dpm, {"order": 2, "form": "heun"}),
    Solver("dpmpp-3m", 2, "DPM-Solver++(3M) as released (see ab-3)", dpm, {"order": 3}),
    *(
        Solver(f"dpm-{p}m", 2, f"DPM-Solver({p}M) in eps", dpm, {"order": p, "prediction": "eps"})
        for p in (2, 3)
    ),
    *(
        Solver(f"dpmpp-{p}s", p, f"DPM-Solver++({p}S), singlestep", dpm_singlestep, {"order": p})
        for p in (2, 3)
    ),
    *(
        Solver(
            f"dpm-{p}s",
            p,
            f"DPM-Solver({p}S) in eps, singlestep",
            dpm_singlestep,
            {"order": p, "prediction": "eps"},
        )
        for p in (2, 3)
    ),
    *(
        Solver(f"sde-dpmpp-{p}m", 2, f"SDE-DPM-Solver++({p}M), exact", sde_dpm, {"order": p})
        for p in (2, 3)
    ),
    *(
        Solver(f"ab-{p}", p, f"exponential Adams-Bashforth, {p} outputs in x0", adams, {"order": p})
        for p in (2, 3, 4, 5)
    ),
    *(
        Solver(
            f"deis-{p}",
            p,
            f"DEIS in log rho: exponential Adams-Bashforth, {p} outputs in eps",
            adams,
            {"order": p, "prediction": "eps"},
        )
        for p in (2, 3, 4)
    ),
    *(
        Solver(
            f"deis-{tag}ab{p}",
            p,
            f"DEIS {tag}AB: polynomial in {variable} through {p} outputs",
            deis,
            {"order": p, "variable": variable},
        )
        for tag, variable in (("t", "time"), ("rho", "rho"))
        for p in (2, 3, 4)
    ),
    *(
        Solver(f"unip-{p}", p, f"UniP-{p}, predictor only", unipc, {"order": p, "corrector": False})
        for p in (2, 3, 4)
    ),
    *(
        Solver(f"unipc-{p}", p + 1, f"UniPC-{p} with its free corrector", unipc, {"order": p})
        for p in (1, 2, 3, 4)
    ),
    *(
        Solver(f"ipndm-{p}", 2, f"iPNDM through {p} outputs", ipndm, {"order": p})
        for p in (2, 3, 4)
    ),
    Solver("pndm", 2, "PNDM, first step repeated (PLMS)", pndm, late="ipndm-4"),
    Solver(
        "pndm-rk4",
        2,
        "PNDM, three Runge-Kutta steps first",
        pndm,
        {"warmup": "rk4"},
        late="ipndm-4",
    ),
    *(
        Solver(
            f"sa-{p}",
            2,
            f"SA-Solver, tau = 1, predictor {p} and corrector {c} outputs",
            sa,
            {"predictor": p, "corrector": c},
        )
        for p, c in ((2, 2), (3, 4))
    ),
    Solver(
        "dpm-v3",
        4,
        "DPM-Solver-v3: with `statistics` of a model; UniPC-3 of exact weights without",
        dpm_v3,
        {"order": 3, "extra": 1},
    ),
    Solver("heun", 2, "Heun in sigma / alpha, 2 evaluations a step", heun),
    Solver(
        "heun-flow",
        2,
        "Heun in the sigma of a flow, 2 evaluations a step",
        rho_rk,
        {"method": "heun", "variable": "flow_sigma"},
    ),
    Solver("deis-rho-kutta3", 3, "Kutta's third order in rho", rho_rk, {"method": "kutta3"}),
    Solver("deis-rho-rk4", 4, "Runge-Kutta 4 in rho", rho_rk, {"method": "rk4"}),
    Solver("dpm-2", 2, "DPM-Solver-2: a midpoint inserted in every step", dpm2),
    Solver("dpm-2-ancestral", 2, "DPM-Solver-2 below the level, and noise", dpm2_ancestral),
    Solver("dpmpp-sde", 2, "DPM-Solver++ with a midpoint, noise at both", dpmpp_sde),
)

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in CATALOGUE}

# The names that diffusers, k-diffusion and the WebUIs use.
ALIASES: dict[str, tuple[str, ...]] = {
    "ddim": (
        "euler",
        "k_euler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ),
    "ddpm": (
        "euler-ancestral",
        "euler_a",
        "k_euler_ancestral",
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
    ),
    "dpmpp-2m": (
        "DPM++ 2M",
        "k_dpmpp_2m",
        "DPMSolverMultistepScheduler",
        "EDMDPMSolverMultistepScheduler",
    ),
    "dpmpp-3m": ("DPM++ 3M",),
    "dpmpp-2s": ("DPM++ 2S", "DPMSolverSinglestepScheduler"),
    "dpm-3s": ("dpm-fast", "k_dpm_fast"),
    "sde-dpmpp-2m": ("DPM++ 2M SDE", "DPM++ 2M SDE Heun", "k_dpmpp_2m_sde"),
    "sde-dpmpp-3m": ("DPM++ 3M SDE", "k_dpmpp_3m_sde"),
    "ab-3": ("dpmpp-3m-exact",),
    "deis-2": ("DEISMultistepScheduler",),
    "deis-3": ("deis",),
    "deis-rhoab4": ("lms", "k_lms", "LMSDiscreteScheduler"),
    "unipc-2": ("UniPCMultistepScheduler",),
    "unipc-3": ("unipc", "uni_pc", "uni_pc_bh2"),
    "ipndm-4": ("ipndm", "IPNDMScheduler"),
    "pndm": ("plms", "PNDMScheduler"),
    "sa-2": ("SASolverScheduler",),
    "sa-3": ("sa-solver",),
    "heun": ("k_heun", "HeunDiscreteScheduler", "deis-rho-heun"),
    "heun-flow": ("FlowMatchHeunDiscreteScheduler",),
    "dpm-2": ("DPM2", "k_dpm_2", "KDPM2DiscreteScheduler"),
    "dpm-2-ancestral": ("DPM2 a", "k_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    "dpmpp-sde": ("DPM++ SDE", "k_dpmpp_sde", "DPMSolverSDEScheduler"),
}


def key(name: str) -> str:
    """Fold case, blanks, dashes and underscores; '+' reads as p."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def index() -> dict[str, str]:
    """Folded names and aliases to names; ValueError if two solvers claim one."""
    found: dict[str, str] = {}
    for entry in SOLVERS.values():
        for alias in (entry.name, *entry.aliases):
            if found.setdefault(key(alias), entry.name) != entry.name:
                raise ValueError(f"{alias!r} stands for both {found[key(alias)]} and {entry.name}")
    return found


INDEX = index()


def solvers() -> list[Solver]:
    """All registered solvers."""
    return list(SOLVERS.values())


def solver(name: str) -> Solver:
    """The solver of that name or alias; ValueError suggests names."""
    if key(name) not in INDEX:
        close = get_close_matches(name.lower(), SOLVERS, n=4, cutoff=0.5) or list(SOLVERS)
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(close)}")
    return SOLVERS[INDEX[key(name)]]


def build(name: str, grid: Grid, **options: Any) -> Tableau:
    """The table of a named solver on a grid; `options` are those of its builder, or of `CHANGES`.

    The latter are for any solver, and done in this order: `compensate` (ratios, or the name of a
    file of them and perhaps a guidance scale), `dualfast` (a strength), `analytic_first_step`
    ("eps", or the mean of the data); each is a value, or the arguments of that function by name.

    Names and aliases are those of `solvers()`, spelled with any case and any of "-_ ". Raises
    ValueError for an unknown name and TypeError for an option the builder does not have.
    """
    return solver(name)(grid, **options)


def build_within(name: str, nfe: int, make_grid: Callable[[int], Grid], **options: Any) -> Tableau:
    """The table with the most steps that costs at most `nfe` evaluations.

    `make_grid(steps)` makes the grid; solvers with several evaluations a step get fewer steps.
    Raises TooFewEvaluations when even one step costs more.
    """
    spared = int("analytic_first_step" in options)
    for steps in range(nfe + spared, 0, -1):
        table = build(name, make_grid(steps), **options)
        if table.nfe <= nfe:
            return table
    raise TooFewEvaluations(f"{name}: one step takes more than {nfe} network evaluations")
