"""`fewstep fit` and `fewstep distill`: samplers that learn from better ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import configs
from ..distill.config import TableConfig
from ..distill.tables import FAMILY, learn_tables
from ..eval.models import NetworkModel, load_model, pick_device
from . import console
from .app import app
from .console import Device, key_values, listed, print_table, progress_bar

group = typer.Typer(
    help="Learn samplers from better ones; each result is a file of numbers.",
    no_args_is_help=True,
)
app.add_typer(group, name="distill")

ModelName = Annotated[str, typer.Option(help="As in `fewstep generate`.")]
Evaluations = Annotated[str, typer.Option(help="Network evaluations per image, such as 3,5,8.")]
Guidance = Annotated[float, typer.Option(help="Scale that it is learned for; 1 is off.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for any other setting, repeatable, such as labels=3."),
]
Out = Annotated[Path, typer.Option("--out", help="The folder of the result.")]


@app.command()
def fit(
    model: ModelName = "mnist",
    nfe: Evaluations = "5",
    samples: Annotated[int, typer.Option(min=2, help="Trajectories of the teacher.")] = 160,
    guidance: Guidance = 1.0,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = Path("runs/fit"),
) -> None:
    """Fit tables to a teacher in closed form: no gradients, a minute for five evaluations.

    A teacher of 24 steps is run on a few hundred noises; nodes are tried, and on each the rows that
    follow it best are a least-squares solution; two more such solutions correct all of it for the
    last state. `fewstep distill table` takes more of everything.

    Then: fewstep bench mnist --solvers runs/fit/tables.json, or in Python
    fewstep.use(pipe, "runs/fit/tables.json").
    """
    given = {"samples": samples, "held_out": max(samples // 4, 1), "search": min(samples, 40)}
    given |= {"teacher_steps": 24, "moves": 0, "steps": 2}
    learned(model, nfe, {**given, "guidance": guidance}, change, device, folder)


@group.command()
def table(
    model: ModelName = "mnist",
    nfe: Evaluations = "3,4,5,6,8,10",
    samples: Annotated[int, typer.Option(min=2, help="Trajectories to learn from.")] = 300,
    held_out: Annotated[int, typer.Option(min=1, help="More, to choose by.")] = 100,
    steps: Annotated[int, typer.Option(min=0, help="Gauss-Newton steps; 0: closed form.")] = 6,
    guidance: Guidance = 1.0,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = Path("runs/tables"),
) -> None:
    """Learn tables for a model: the nodes and all coefficients, a few minutes for each NFE.

    First as `fewstep fit`, then Gauss-Newton steps on the distance of the samples to the teacher's,
    as long as they help on held-out noises. The same command goes on where it was stopped.
    """
    given = {"samples": samples, "held_out": held_out, "steps": steps, "guidance": guidance}
    learned(model, nfe, given, change, device, folder)


def learned(
    model: str,
    nfe: str,
    given: dict[str, Any],
    change: list[str] | None,
    device: str,
    folder: Path,
) -> None:
    """Learn tables, and print how they do."""
    values = {"model": model, "nfe": listed(nfe), **given, **key_values("--set", change)}
    config = configs.checked(TableConfig, values, "settings")
    loaded = load_model(
        config.model.id,
        pick_device(device),
        dtype=config.model.dtype,
        trust_pickle=config.model.trust_pickle,
    )
    if not isinstance(loaded, NetworkModel):
        raise ValueError(
            f"{model} is a whole pipeline with a loop of its own; tables are learned for networks"
        )
    with progress_bar(f"tables for {loaded.name}") as progress:
        found = learn_tables(config, loaded, folder, progress)
    rows = [
        [
            f"{number}",
            f"{each.error:.4f}",
            f"{each.peer_error:.4f}",
            f"{each.error / each.peer_error:.2f}",
            each.peer,
        ]
        for number, each in found.items()
    ]
    head = ["NFE", "RMSE", "best solver's", "ratio", "which"]
    print_table(f"distance to the teacher on {config.held_out} held-out noises", head, rows)
    console.out.print(f"tables: {folder / FAMILY}", highlight=False, soft_wrap=True)
