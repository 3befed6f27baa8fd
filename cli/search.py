"""`fewstep search`: samplers that are looked for rather than learned."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .. import configs
from ..eval.models import configured, pick_device
from ..eval.processes import check_shared, launched
from ..eval.progress import silent
from ..samplers.family import FAMILY
from ..samplers.model_statistics import STATISTICS
from ..samplers.ratios import RATIOS
from ..schedules.placed import SPACING
from ..search.dc import RatioConfig, find_ratios
from ..search.grids import config_of, find_grids
from ..search.grids.run import USUAL, shown
from ..search.option import CARD, OptionConfig, find_option
from ..search.s3 import SearchConfig, search
from ..search.statistics import StatisticsConfig, find_statistics
from . import console
from .app import app
from .console import (
    ANY_SETTING,
    Device,
    Evaluations,
    ModelName,
    Out,
    Settings,
    listed,
    named_run,
    network_of,
    overridden,
    print_table,
    progress_bar,
    run_settings,
)

group = typer.Typer(
    help="Look for samplers: solver schedules, nodes of grids, ratios of compensation, one number "
    "of a solver, statistics of a model.",
    no_args_is_help=True,
)
app.add_typer(group, name="search")


@group.command(context_settings=ANY_SETTING)
def s3(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help=f"{', '.join(configs.names('search/s3'))}, or a YAML file."),
    ] = "mnist-s3",
    model: ModelName = None,
    nfe: Evaluations = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="predictor (the default), or its rivals evolution and random."),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="How many schedules are evaluated at each NFE.")
    ] = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Search for solver schedules (S^3): every step has a time, order and form of its own.

    Some schedules are evaluated, published ones among them; a predictor learns to rank them, breeds
    thousands that it thinks better, and the best of these are evaluated in turn. What is best in
    the end, by samples of its own, is a plain table. The report, OUT/search-NFE.html, is written
    after every batch.

    The same command goes on where it was stopped, and may run several times at once, or under
    `accelerate launch -m fewstep.cli search s3 ..`: all share one archive, OUT/archive.sqlite.

    Example: fewstep search s3 --nfe 4,5 --set minutes=30
    """
    name, flags = named_run(run, "mnist-s3", context.args)
    values = run_settings("search/s3", name, model, ("families", "measures", "space"))
    given = {"nfe": listed(nfe), "strategy": strategy, "evaluations": evaluations}
    config = configs.checked(SearchConfig, overridden(values, given, flags, change), "settings")
    where = pick_device(device)
    processes = launched(where)
    target = folder or Path("runs") / Path(name).stem
    check_shared(target, processes)
    loaded = configured(config.model, where)
    bar = progress_bar(f"search, {loaded.name}") if processes.first else nullcontext(silent)
    with bar as progress:
        found = search(config, loaded, target, progress, processes)
    if not processes.first:
        return
    rows = [
        [
            f"{number}",
            f"{each.entry.verdict.score:.4g}",
            f"{each.validated.verdict.score:.4g}",
            each.entry.proposal.origin,
            f"{len(each.entries)}",
            f"{each.seconds / 60:.1f}",
        ]
        for number, each in found.items()
    ]
    head = ["NFE", "score", "of other samples", "origin", "evaluated", "minutes"]
    print_table("the best schedules", head, rows)
    numbers = ",".join(map(str, found))
    console.out.print(
        f"tables: {target / FAMILY}\n"
        f"beside others: fewstep bench .. --nfe {numbers} --solvers unipc-3,{target}",
        highlight=False,
        soft_wrap=True,
    )


@group.command(context_settings=ANY_SETTING)
def grid(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(configs.names('search/grid'))}, or a YAML file like "
            "configs/search/grid/gits.yaml."
        ),
    ],
    model: ModelName = None,
    nfe: Evaluations = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Place the nodes of a grid where a model needs them; the result is a spacing for any solver.

    dm (DM-NonUniform) passes on least of the network's error, and looks at the noise schedule only:
    seconds. gits finds the nodes whose Euler steps stay nearest to sampled trajectories, ays those
    that lose least by a bound on the divergence (Align Your Steps): a few minutes, once for all
    numbers of steps. The same command goes on where it was stopped.

    Example: fewstep search grid gits --nfe 4,6,8

    Then: fewstep bench mnist --nfe 4,6,8 --spacings uniform,runs/gits, fewstep sample --spacing
    runs/gits, or in Python fewstep.grid(schedule, 6, "runs/gits"). docs/grids.md says more.
    """
    values = run_settings("search/grid", run, model)
    config = config_of(overridden(values, {"nfe": listed(nfe)}, context.args, change), run)
    loaded = network_of(config.model, device)
    target = folder or Path("runs") / Path(run).stem
    with progress_bar(f"nodes for {loaded.name}") as progress:
        found = find_grids(config, loaded, target, progress)
    rows = [
        [
            f"{steps}",
            f"{each.record['cost']:.4g}",
            *(shown(each.record["usual"].get(name)) for name in USUAL),
        ]
        for steps, each in found.items()
    ]
    print_table("cost, and that of common spacings", ["steps", "placed", *USUAL], rows)
    console.out.print(
        f"nodes: {target / SPACING}\n"
        f"beside others: fewstep bench .. --nfe {','.join(map(str, found))} "
        f"--spacings uniform,{target}",
        highlight=False,
        soft_wrap=True,
    )


@group.command(context_settings=ANY_SETTING)
def dc(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help=f"{', '.join(configs.names('search/dc'))}, or a YAML file."),
    ] = "dc",
    model: ModelName = None,
    nfe: Evaluations = None,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scales such as 1,2,4: ratios for each.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Whose outputs are compensated; default unipc-3.")
    ] = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Look for the ratios of DC-Solver: how far each output is moved along the run.

    Before each step the newest output is replaced by its interpolation at a time a little off;
    the ratios say where. They are found on a few noises beside a better run of the same: step by
    step first, as published, then all together for the last state (--set method=greedy for the
    former alone). Several NFE and guidance scales give a polynomial for those between. The same
    command goes on where it was stopped.

    Example: fewstep search dc --nfe 5,6,8,10 --guidance 1,2,4

    Then, in a config of `fewstep bench`: {name: unipc-3, label: dc, options: {compensate: runs/dc}}
    """
    name, flags = named_run(run, "dc", context.args)
    values = run_settings("search/dc", name, model)
    given = {"nfe": listed(nfe), "guidance": listed(guidance), "solver": solver}
    config = configs.checked(RatioConfig, overridden(values, given, flags, change), "settings")
    loaded = network_of(config.model, device)
    target = folder or Path("runs") / Path(name).stem
    with progress_bar(f"ratios for {loaded.name}") as progress:
        found = find_ratios(config, loaded, target, progress)
    rows = [
        [
            f"{each.nfe}",
            f"{each.guidance:g}",
            *(f"{error:.4g}" for error in each.errors.values()),
            " ".join(f"{ratio:.2f}" for ratio in each.ratios),
        ]
        for each in found
    ]
    head = ["NFE", "guidance", *found[0].errors, "ratios"]
    print_table("RMSE on held-out noises", head, rows)
    console.out.print(f"ratios: {target / RATIOS}", highlight=False, soft_wrap=True)


@group.command(context_settings=ANY_SETTING)
def option(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help=f"{', '.join(configs.names('search/option'))}, or a YAML file."),
    ] = "dualfast",
    model: ModelName = None,
    nfe: Evaluations = None,
    guidance: Annotated[
        str | None, typer.Option(help="Guidance scales such as 1,2,4: a value for each.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Whose option it is; default unipc-3.")] = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Look for the best value of one number of a solver, such as the strength of DualFast.

    Values between `low` and `high` are tried on a few noises beside a better run of the same; the
    best is what ends nearest to it. The card, OUT/README.md, has a picture of what each value is
    worth. The same command goes on where it was stopped.

    Example: fewstep search option dualfast --nfe 5,8

    Any other number: --set option=compensate --set low=0.8 --set high=1.4, or with dots inside
    another, --set option=dualfast.strength --set 'options={dualfast: {reference: first}}'
    """
    name, flags = named_run(run, "dualfast", context.args)
    values = run_settings("search/option", name, model)
    given = {"nfe": listed(nfe), "guidance": listed(guidance), "solver": solver}
    config = configs.checked(OptionConfig, overridden(values, given, flags, change), "settings")
    loaded = network_of(config.model, device)
    target = folder or Path("runs") / f"{config.solver}-{config.option}"
    with progress_bar(f"{config.option} for {loaded.name}") as progress:
        found = find_option(config, loaded, target, progress)
    rows = [
        [
            *(f"{each.nfe}", f"{each.guidance:g}"),
            *(f"{value:.4g}" for value in (each.bare, each.error, each.value)),
        ]
        for each in found
    ]
    head = ["NFE", "guidance", "without", "with", config.option]
    print_table("RMSE on held-out noises", head, rows)
    console.out.print(f"what each value is worth: {target / CARD}", highlight=False, soft_wrap=True)


@group.command(context_settings=ANY_SETTING)
def v3(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help=f"{', '.join(configs.names('search/v3'))}, or a YAML file."),
    ] = "mnist-v3",
    model: ModelName = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Estimate the statistics of a model that DPM-Solver-v3 integrates with.

    What of the network is linear, pixel by pixel and at every noise level, from samples of the
    model. The result is OUT/statistics.safetensors, an option of the solver dpm-v3.

    Example: fewstep search v3 --set samples=128 --set lams=40

    Then, in Python: fewstep.build("dpm-v3", grid, statistics="runs/mnist-v3"), or in the settings
    of a bench: solvers: [{name: dpm-v3, options: {statistics: runs/mnist-v3}}]. docs/dpm-v3.md says
    more.
    """
    name, flags = named_run(run, "mnist-v3", context.args)
    values = run_settings("search/v3", name, model)
    config = configs.checked(StatisticsConfig, overridden(values, {}, flags, change), "settings")
    loaded = network_of(config.model, device)
    target = (folder or Path("runs") / Path(name).stem) / STATISTICS
    with progress_bar(f"statistics of {loaded.name}") as progress:
        found = find_statistics(config, loaded, target, progress)
    rows = [
        [f"{found.lams[k]:.3g}", *(f"{part[k].mean():.4g}" for part in (found.l, found.s, found.b))]
        for k in np.unique(np.linspace(0, len(found.lams) - 1, 9).astype(int))
    ]
    print_table("means over all pixels", ["lam", "l", "s", "b"], rows)
    console.out.print(f"statistics: {target}", highlight=False, soft_wrap=True)
