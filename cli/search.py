"""`fewstep search`: samplers that are looked for rather than learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import configs
from ..eval.models import NetworkModel, load_model, pick_device
from ..schedules.placed import SPACING
from ..search.grids import config_of, find_grids
from ..search.grids.run import USUAL, shown
from . import console
from .app import app
from .console import Device, key_values, listed, print_table, progress_bar

group = typer.Typer(
    help="Look for samplers: where the nodes of a grid are best placed.", no_args_is_help=True
)
app.add_typer(group, name="search")


@group.callback()
def search() -> None:
    """What all searches share."""


@group.command()
def grid(
    run: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(configs.names('search/grid'))}, or a YAML file like "
            "configs/search/grid/gits.yaml."
        ),
    ],
    model: Annotated[str | None, typer.Option(help="As in `fewstep generate`.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Numbers of steps, such as 4,6,8.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for any other setting, repeatable: samples=64"),
    ] = None,
    device: Device = "auto",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder of the result; default runs/RUN.")
    ] = None,
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
    path = configs.find("search/grid", run)
    given: dict[str, Any] = {"model": model, "nfe": listed(nfe)}
    said = {key: value for key, value in given.items() if value is not None}
    config = config_of({**configs.read(path), **said, **key_values("--set", change)}, str(path))
    loaded = load_model(
        config.model.id,
        pick_device(device),
        dtype=config.model.dtype,
        trust_pickle=config.model.trust_pickle,
    )
    if not isinstance(loaded, NetworkModel):
        raise ValueError(
            f"{config.model.id} is a whole pipeline with a loop of its own; grids are placed for "
            "networks"
        )
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
