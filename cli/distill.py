"""`fewstep fit` and `fewstep distill`: samplers that learn from better ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import configs
from ..distill.tables import TableConfig, learn_tables
from ..eval.models import pick_device
from ..samplers.family import FAMILY
from . import console
from .app import app
from .console import (
    ANY_SETTING,
    Device,
    Evaluations,
    Guidance,
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
    help="Learn samplers from better ones: tables of numbers, discrete samplers, or networks.",
    no_args_is_help=True,
)
app.add_typer(group, name="distill")


@app.command(context_settings=ANY_SETTING)
def fit(
    context: typer.Context,
    model: ModelName = None,
    nfe: Evaluations = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Trajectories of the teacher (160).")
    ] = None,
    guidance: Guidance = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Fit tables to a teacher in closed form: no gradients, a minute for five evaluations.

    A teacher of 24 steps is run on a few hundred noises; nodes are tried, and on each the rows that
    follow it best are a least-squares solution; two more such solutions correct all of it for the
    last state. `fewstep distill table` takes more of everything.

    Then: fewstep bench mnist --nfe 5 --solvers unipc-3,runs/fit, or in Python
    fewstep.use(pipe, "runs/fit").
    """
    given = {"nfe": listed(nfe), "samples": samples, "guidance": listed(guidance)}
    learn("fit", model, given, context.args, change, device, folder)


@group.command(context_settings=ANY_SETTING)
def table(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(help="tables, or a YAML file such as configs/distill/table/tables.yaml."),
    ] = "tables",
    model: ModelName = None,
    nfe: Evaluations = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="Trajectories to learn from (300).")
    ] = None,
    held_out: Annotated[int | None, typer.Option(min=1, help="More, to choose by (100).")] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Gauss-Newton steps (6); 0: closed form.")
    ] = None,
    guidance: Guidance = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Learn tables for a model: the nodes and all coefficients, a few minutes for each NFE.

    First as `fewstep fit`, then Gauss-Newton steps on the distance of the samples to the teacher's,
    as long as they help on held-out noises; with --max_train_steps N a descent by gradients
    follows. The same command goes on where it was stopped.

    Example: fewstep distill table --model FOLDER --nfe 4,6

    Every setting is in docs/learned-tables.md; a YAML file in place of the run's name has them all.
    """
    name, flags = named_run(run, "tables", context.args)
    given = {
        "nfe": listed(nfe),
        "samples": samples,
        "held_out": held_out,
        "steps": steps,
        "guidance": listed(guidance),
    }
    learn(name, model, given, flags, change, device, folder)


@group.command(context_settings=ANY_SETTING)
def mmd(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="mmd-mnist, or a YAML file like it.")],
    model: ModelName = None,
    data: Annotated[
        str | None, typer.Option(help="The real images: a folder, a .zip, an .npz.")
    ] = None,
    nfe: Annotated[int | None, typer.Option(min=1, help="Network evaluations per image.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="Which samples are trained: see `fewstep solvers`.")
    ] = None,
    lora: Annotated[
        int | None, typer.Option(min=1, help="Rank of adapters to train instead of all weights.")
    ] = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Fine-tune a network for few steps of one sampler, on the statistics of its samples.

    Batches of samples are made like batches of real images in features of an extractor (MMD-DDM);
    the result, OUT/model, is a pipeline with the network and its sampler. It is for that sampler
    at that number of steps: with others it may be worse than before. The same command goes on
    where it was stopped; `accelerate launch -m fewstep.cli distill mmd ..` uses many devices.

    The run mmd-mnist wants two classifiers of other features than the bundled one:

    fewstep train mnist-classifier --set architecture=lenet --set seed=1 --out runs/lenet

    fewstep train mnist-classifier --set seed=2 --set epochs=8 --out runs/pooled

    fewstep distill mmd mmd-mnist
    """
    # Here, because trainers take seconds to import.
    from ..distill.mmd import MMDConfig, finetune

    own = ("judge", "labels") if model is None else ("judge", "labels", "solver")
    values = run_settings("distill/mmd", run, model, own, data)
    given = {"nfe": nfe, "solver": solver, "lora": lora}
    config = configs.checked(MMDConfig, overridden(values, given, context.args, change), "settings")
    target = folder or Path("runs") / Path(run).stem
    loaded = network_of(config.model, device)
    with progress_bar(f"tune {loaded.name}") as progress:
        tuned = finetune(config, loaded, target, progress)
    rows = [
        [name, f"{tuned.before[name]:.5f}", f"{each:.5f}"] for name, each in tuned.after.items()
    ]
    title = f"kernel distances of {config.validation_images} samples, NFE {tuned.table.nfe}"
    print_table(title, ["features", "before", "after"], rows)
    console.out.print(f"pipeline: {tuned.folder}", highlight=False, soft_wrap=True)


@group.command(context_settings=ANY_SETTING)
def lsd(
    context: typer.Context,
    run: Annotated[
        str, typer.Argument(help="lsd-countdown (a chain), lsd-text, or a YAML file like them.")
    ],
    model: Annotated[
        str | None, typer.Option(help="text, or the folder of another text model.")
    ] = None,
    nfe: Evaluations = None,
    objective: Annotated[
        str | None, typer.Option(help="mmd, path_ml, score_l2 or score_log.")
    ] = None,
    change: Settings = None,
    device: Device = "auto",
    folder: Out = None,
) -> None:
    """Learn discrete samplers: hazards, temperatures and times of each step, for token sequences.

    A discrete solver's samples are drawn to those of the same solver with many more steps, by the
    gradient of the score function (LSD; other objectives are there to be compared with). Of a chain
    the divergence of its law is exact; text is judged by 4-grams, with a warning where samples are
    likelier than text is. Each result is a table, OUT/jumps-NFE.json. The same command goes on
    where it was stopped.

    Example: fewstep distill lsd lsd-countdown --nfe 4,8
    """
    # Here, because trainers take seconds to import.
    from ..distill.lsd import LSDConfig, learn_jumps, token_model

    given = {"nfe": listed(nfe), "objective": objective}
    values = run_settings("distill/lsd", run, model)
    config = configs.checked(LSDConfig, overridden(values, given, context.args, change), "settings")
    target = folder or Path("runs") / Path(run).stem
    loaded = token_model(config.model, pick_device(device))
    with progress_bar(f"samplers, {config.objective}") as progress:
        found = learn_jumps(config, loaded, target, progress)
    rows = [
        [f"{number}", name, f"{each.before.numbers[name]:.4f}", f"{value:.4f}"]
        for number, each in found.items()
        for name, value in each.after.numbers.items()
    ]
    print_table(f"{config.base}, {config.spacing}", ["NFE", "measure", "before", "after"], rows)
    for number, each in found.items():
        for flag in each.after.flags:
            console.out.print(f"NFE {number}: {flag}", markup=False, highlight=False)
    console.out.print(f"tables: {target}", highlight=False, soft_wrap=True)


def learn(
    run: str,
    model: str | None,
    given: dict[str, Any],
    flags: list[str],
    change: list[str] | None,
    device: str,
    folder: Path | None,
) -> None:
    """Learn tables as a run says, and print how they do."""
    values = run_settings("distill/table", run, model, ("features", "likeness"))
    config = configs.checked(TableConfig, overridden(values, given, flags, change), "settings")
    target = folder or Path("runs") / Path(run).stem
    loaded = network_of(config.model, device)
    with progress_bar(f"tables for {loaded.name}") as progress:
        found = learn_tables(config, loaded, target, progress)
    rows = [
        [
            f"{number}",
            f"{each.error:.4f}",
            f"{each.peer_error:.4f}",
            f"{each.error / each.peer_error:.2f}",
            str(each.record["peer"]),
        ]
        for number, each in found.items()
    ]
    head = ["NFE", "RMSE", "best solver's", "ratio", "which"]
    print_table(f"distance to the teacher on {config.held_out} held-out noises", head, rows)
    numbers = ",".join(map(str, found))
    console.out.print(
        f"tables: {target / FAMILY}\n"
        f"beside others: fewstep bench .. --nfe {numbers} --solvers unipc-3,{target}",
        highlight=False,
        soft_wrap=True,
    )
