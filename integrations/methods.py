"""What the classes of diffusers do between the nodes: the table that each config asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .. import samplers
from ..samplers import Tableau
from ..samplers.dpm import Form, singlestep_orders
from ..samplers.registry import CHANGES
from ..schedules import Grid
from .request import Config

# (config, grid of the steps that are left, steps taken before it) -> the table of those left.
Method = Callable[[Config, Grid, int], Tableau]

# Below this many steps the DPM and DEIS classes lower the order at the end.
FEW = 15


def lowered(grid: Grid, order: int, lower: bool = True) -> list[int]:
    """`order` for every step, and .., 2, 1 at the end."""
    return [min(order, grid.nfe - k) if lower else order for k in range(grid.nfe)]


def multistep_orders(config: Config, grid: Grid, begun: int) -> list[int]:
    """The orders of the DPM and DEIS classes."""
    few = grid.nfe + begun < FEW
    orders = lowered(grid, config["solver_order"], config["lower_order_final"] and few)
    return [*orders[:-1], 1] if config.get("euler_at_final") else orders


def form(config: Config) -> Form:
    """The second order of DPM-Solver; the names of other classes' variants mean the default."""
    return "heun" if config["solver_type"] == "heun" else "midpoint"


def dpm_multistep(config: Config, grid: Grid, begun: int) -> Tableau:
    """DPM-Solver(++) multistep, ODE or SDE, with the exact third order."""
    kind = config.get("algorithm_type", "sde-dpmsolver++")
    builder = samplers.sde_dpm if kind.startswith("sde") else samplers.dpm
    return builder(
        grid,
        multistep_orders(config, grid, begun),
        "eps" if kind.endswith("dpmsolver") else "x0",
        form=form(config),
        third="exact",
        lower_final=False,
    )


def dpm_singlestep(config: Config, grid: Grid, begun: int) -> Tableau:
    """DPM-Solver(++) singlestep; a split that does not come out even lowers the end."""
    n, order = grid.nfe + begun, config["solver_order"]
    to_zero = config["final_sigmas_type"] == "zero"
    orders = singlestep_orders(n, order, config["lower_order_final"] or to_zero or n % order != 0)
    left = [min(p, k + 1) for k, p in enumerate(orders[begun:])]
    kind = config["algorithm_type"]
    return samplers.dpm_singlestep(
        grid,
        left,
        "eps" if kind.endswith("dpmsolver") else "x0",
        form=form(config),
        eta=float(kind.startswith("sde")),
    )


def unipc(config: Config, grid: Grid, begun: int) -> Tableau:
    """UniPC; steps in `disable_corrector` are not corrected."""
    return samplers.unipc(
        grid,
        lowered(grid, config["solver_order"], config["lower_order_final"]),
        config["solver_type"] if config["solver_type"] in ("bh1", "bh2") else "bh2",
        [k + begun not in config["disable_corrector"] for k in range(grid.nfe)],
        "x0" if config["predict_x0"] else "eps",
        lower_final=False,
    )


def deis(config: Config, grid: Grid, begun: int) -> Tableau:
    """DEIS in log rho."""
    return samplers.adams(grid, multistep_orders(config, grid, begun), "eps", lower_final=False)


def sa(config: Config, grid: Grid, begun: int) -> Tableau:
    """SA-Solver; tau is 1 between the labels 200 and 800 unless the config has a function."""
    tau = config.get("tau_func") or (lambda t: float(200 <= t <= 800))
    labels = dict(zip(grid.time.tolist(), grid.label.tolist(), strict=True))
    return samplers.sa(
        grid,
        config["predictor_order"],
        config["corrector_order"],
        lambda t: tau(labels[t]),
        "x0" if config["algorithm_type"] == "data_prediction" else "eps",
        lower_final=config["lower_order_final"],
    )


def ddpm(config: Config, grid: Grid, begun: int) -> Tableau:
    """DDPM; the variance is that of the posterior or of the forward step."""
    kind = config["variance_type"]
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
        raise ValueError(
            f"variance_type {kind!r}: the variance of a table is fixed; use 'fixed_small' or "
            f"'fixed_large'"
        )
    return samplers.ddpm(grid, "small" if "small" in kind else "large")


def pndm(config: Config, grid: Grid, begun: int) -> Tableau:
    """PNDM; a single step has no warm-up, and what is left of a run is iPNDM."""
    if begun or grid.nfe == 1:
        return samplers.ipndm(grid)
    return samplers.pndm(grid, "euler" if config["skip_prk_steps"] else "rk4")


def flow_euler(config: Config, grid: Grid, begun: int) -> Tableau:
    """Euler on a flow, or x0 with fresh noise at every step."""
    return samplers.lcm(grid) if config["stochastic_sampling"] else samplers.ddim(grid)


# Levels to try options on.
PROBE = Grid.from_sigmas((14.6, 6.0, 2.5, 1.0, 0.0))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """ValueError for options that a solver has not, or has not with these values.

    Lists are as long as a run, as ratios in files may be, and tried there.
    """
    inner = [v for value in options.values() if isinstance(value, Mapping) for v in value.values()]
    if any(isinstance(value, list | tuple) for value in (*options.values(), *inner)):
        return
    how = options.get("compensate")
    ratios = how.get("ratios") if isinstance(how, Mapping) else how
    if isinstance(ratios, str):
        # A file may have those of some runs only.
        samplers.Ratios.load(ratios)
        options = {key: value for key, value in options.items() if key != "compensate"}
    try:
        samplers.build(name, PROBE, **options)
    except (TypeError, ValueError) as error:
        known = list(inspect.signature(samplers.solver(name).builder).parameters)[1:]
        raise ValueError(
            f"{name} cannot be built with {dict(options)}: {error}; its options are "
            f"{', '.join((*known, *CHANGES))}"
        ) from error


def fixed(builder: Callable[..., Tableau], **options: Any) -> Method:
    """A method whose config says nothing about the solver."""
    return lambda config, grid, begun: builder(grid, **options)


ddim = fixed(samplers.ddim)
ipndm = fixed(samplers.ipndm)
lms = fixed(samplers.deis, order=4, variable="rho", lower_final=False)
euler_ancestral = fixed(samplers.ddim, eta=1.0)
heun = fixed(samplers.heun)
dpm2 = fixed(samplers.dpm2)
dpm2_ancestral = fixed(samplers.dpm2_ancestral)
dpmpp_sde = fixed(samplers.dpmpp_sde)
flow_heun = fixed(samplers.rho_rk, method="heun", variable="flow_sigma")
