"""One line that gives a diffusers pipeline another solver, and one that takes it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..samplers import GaussianData, Tableau, is_family, load_family
from ..samplers.teleport import beginning
from ..schedules import Placed
from .families import FAMILIES, law_of
from .keys import NODE_KEYS, replaced_keys
from .placement import sigma_spacing
from .plan import chosen_table, held_tables, make_plan
from .request import Request
from .scheduler import TableauScheduler


def use(
    pipe: Any,
    solver: str | Tableau | Path | Mapping[str, Any],
    *,
    spacing: str | Path | Placed | Mapping[str, Any] | None = None,
    nfe: int | None = None,
    guidance: float | None = None,
    verbose: bool = True,
    **keys: Any,
) -> TableauScheduler:
    """Give a diffusers pipeline another solver; returns the scheduler that it now has.

    The noise schedule, the prediction type and the nodes are those of the pipeline's own scheduler,
    where that places them rightly (docs/diffusers-differences.md). But "leading" times, which leave
    out the noisiest levels where steps are few (Lin et al. 2023), become "trailing". What was
    chosen is printed unless `verbose` is off.

    Parameters
    ----------
    solver
        A name of `samplers.solvers()`; or a table, the path of one, of a family or of the folder
        of one (also as text), a name of `samplers.families()`, or a mapping from numbers of
        evaluations to tables or paths.
    spacing
        A name of `schedules.SPACINGS` in place of the nodes, or placed ones or their path.
    nfe
        Network evaluations of a run at most, whatever number of steps the pipeline asks for. Text
        to image only: pipelines that begin late count in the steps that they asked for.
    guidance
        The scale that the pipeline will be called with, for tables that depend on it.
    keys
        Further keys of `TableauScheduler.from_config`, such as `solver_options` or `like`.

    Raises
    ------
    ValueError
        If `pipe` has no scheduler, or one of no class that is known, or if tables are of another
        noise schedule, or none is within `nfe`.
    """
    own = getattr(pipe, "scheduler", None)
    if own is None:
        raise ValueError(f"use: {type(pipe).__name__} has no scheduler to replace")
    original = getattr(own, "replaced", None) or own
    chosen = {**keys, **{k: v for k, v in (("spacing", spacing), ("nfe", nfe)) if v is not None}}
    if isinstance(solver, str) and not is_family(solver):
        chosen["solver"] = solver
    elif isinstance(solver, str | Path):
        found = load_family(solver, guidance)
        tables = {str(table.grid.nfe): table.to_dict() for table in found.values()}
        chosen["tableau"] = tables if len(tables) > 1 else next(iter(tables.values()))
    elif isinstance(solver, Mapping) and "weights" not in solver:
        chosen["tableau"] = {str(rows): written(table) for rows, table in solver.items()}
    else:
        chosen["tableau"] = written(solver)
    leading = original.config.get("timestep_spacing") == "leading"
    if leading and "timestep_spacing" not in keys and not replaced_keys(chosen) & NODE_KEYS:
        chosen["timestep_spacing"] = "trailing"
    config = dict(original.config)
    if type(original).__name__ in FAMILIES:
        # A config says which class it is of only once it was saved.
        config["_class_name"] = type(original).__name__
    scheduler = TableauScheduler.from_config(config, **chosen)
    for rows in held_tables(scheduler.config["tableau"]) if scheduler.config["tableau"] else ():
        # What cannot run is said now, and not in the middle of a call.
        make_plan(dict(scheduler.config), Request(rows, mu=1.0))
    scheduler.replaced = original
    pipe.scheduler = scheduler
    if verbose:
        print(description(scheduler))
    return scheduler


def written(table: str | Tableau | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A table as a config holds it."""
    if isinstance(table, str | Path):
        found = load_family(table)
        if len(found) > 1:
            raise ValueError(f"{table} has tables of {', '.join(map(str, found))} evaluations")
        (table,) = found.values()
    return table.to_dict() if isinstance(table, Tableau) else dict(table)


def restore(pipe: Any) -> Any:
    """Give a pipeline the scheduler back that it had before `use`; returns that one.

    Raises ValueError if `use` did not replace it.
    """
    original = getattr(getattr(pipe, "scheduler", None), "replaced", None)
    if original is None:
        raise ValueError(f"restore: the scheduler of this {type(pipe).__name__} is not from `use`")
    pipe.scheduler = original
    return original


def teleported(
    scheduler: TableauScheduler,
    noise: Tensor,
    data: GaussianData,
    steps: int,
    labels: Tensor | None = None,
) -> Tensor:
    """The `latents` for a pipeline whose table begins late: noise that normal laws took there.

    `noise` [B, C, H, W] is standard; it stands for the state where the noise schedule begins, and
    goes along `data` (laws of the pipeline's latents, of which `labels` [B] choose if they are by
    class) to node 0 of the table of `steps`. In the form of the scheduler's states, and divided by
    what pipelines multiply latents with (those of flows do not). Raises ValueError for a scheduler
    without a table on a noise schedule.
    """
    held = scheduler.config["tableau"]
    if held is None:
        raise ValueError("teleported: give the pipeline a table that begins late: use(pipe, table)")
    grid = chosen_table(held, steps).grid
    source, target = beginning(grid.require_schedule()).nodes[0], grid.nodes[0]
    scheduler.set_timesteps(steps)
    first = make_plan(dict(scheduler.config), Request(steps)).table.grid.nodes[0]
    x = data.start(source, labels)(source.sigma * noise.float(), target)
    # States of two forms differ by the scale of the signal.
    x = x * (first.alpha / target.alpha)
    scale = 1.0 if law_of(scheduler.config) == "flow" else float(scheduler.init_noise_sigma)
    return (x / scale).to(noise.dtype)


def description(scheduler: TableauScheduler) -> str:
    """What a scheduler does, in one line."""
    config = scheduler.config
    tables = held_tables(config["tableau"]) if config["tableau"] else {}
    rule = sigma_spacing(config) or config.get("timestep_spacing")
    nodes = config["spacing"] or rule or "its own nodes"
    if not isinstance(nodes, str):
        nodes = f"nodes placed for {', '.join(nodes['lam'])} steps"
    if tables:
        nodes = f"tables of {', '.join(map(str, tables))} evaluations"
    names = dict.fromkeys(str(table.get("name")) for table in tables.values())
    solver = config["solver"] or ", ".join(names)
    kind = config.get("prediction_type", "flow_prediction")
    held = f", at most {config['nfe']} network evaluations" if config["nfe"] else ""
    return f"fewstep: {solver} in place of {config['like']}, {nodes}, {kind}{held}"
