"""`fewstep generate`: images at scale."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import configs
from ..eval.extractors import extractor
from ..eval.generation import GenerateConfig, job_for, run_generate
from ..eval.models import LabelRule, configured, pick_device
from ..eval.processes import launched
from ..eval.progress import silent
from . import console
from .app import app
from .console import Device, Nfe, Spacing, listed, progress_bar


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Option(
            help="mnist; a folder or hub id of a diffusers pipeline; an EDM .pkl or its folder."
        ),
    ] = "mnist",
    solver: Annotated[str, typer.Option(help="See `fewstep solvers`.")] = "unipc-3",
    nfe: Nfe = 10,
    spacing: Spacing = "uniform",
    seeds: Annotated[str, typer.Option(help="FIRST-LAST, both included.")] = "0-99",
    labels: Annotated[
        str,
        typer.Option(
            help="balanced (seed mod classes), random (as EDM), a number, or shares: 3,1,2."
        ),
    ] = "balanced",
    guidance: Annotated[float, typer.Option(help="Scale; 1 is off, more doubles the calls.")] = 1.0,
    prompts: Annotated[
        Path | None, typer.Option(help="Texts, one a line; label k is line k.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, ..")] = "float32",
    keep: Annotated[str, typer.Option(help="png (a folder), npz (one file), none.")] = "png",
    extractors: Annotated[
        str | None, typer.Option(help="Also keep features, such as inception,dinov2.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 100,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per checkpoint.")] = 1000,
    noise_device: Annotated[
        str, typer.Option(help="cpu: the same images anywhere; cuda: the noise of EDM's scripts.")
    ] = "cpu",
    teleport: Annotated[
        str | None,
        typer.Option(help="Begin late by these laws: a file of `stats --gaussian`, or mnist."),
    ] = None,
    skip: Annotated[
        float | None, typer.Option(help="Where: sigma / alpha; goes with --teleport.")
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Of mnist: the law of each digit.")
    ] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Execute a .pkl; see `fewstep convert`.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove images of other settings first.")
    ] = False,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Where they go.")] = Path("runs/images"),
) -> None:
    """Make images of many seeds by one solver.

    Each seed has its own noise, so that its image does not depend on the batch, nor on how many
    GPUs there are. The same command goes on where it was stopped, with more seeds if wanted.

    `accelerate launch --num_processes 8 -m fewstep.cli generate ..` shares the work over GPUs.
    """
    first, count = seed_range(seeds)
    if (teleport is None) != (skip is None) or (per_class and teleport is None):
        raise ValueError("--teleport and --skip go together, and --per-class with them")
    start = None if teleport is None else {"teleport": teleport, "skip": skip, "classes": per_class}
    asked: dict[str, Any] = {"id": model, "dtype": dtype, "trust_pickle": trust_pickle}
    values = {
        "model": asked | ({"prompts": str(prompts)} if prompts else {}),
        "solver": {"name": solver, "start": start},
        "nfe": nfe,
        "spacing": spacing,
        "first": first,
        "count": count,
        "labels": labels_of(labels),
        "guidance": guidance,
        "noise_device": noise_device,
        "keep": keep,
        "extractors": listed(extractors) or [],
        "batch_size": batch_size,
        "shard_size": shard_size,
    }
    config = configs.checked(GenerateConfig, values, "generate")
    where = pick_device(device)
    processes = launched(where)
    features = tuple(extractor(each.id, where, **each.options) for each in config.extractors)
    loaded = configured(config.model, where)
    job = job_for(config, loaded, features)
    title = f"generate {count} images"
    with progress_bar(title) if processes.first else nullcontext(silent) as progress:
        made = run_generate(config, job, folder, progress, processes, force)
    if processes.first:
        console.out.print(
            f"{made['images']} images by {job.table.name}, NFE {made['nfe']} "
            f"({made['calls_per_image']:g} network evaluations measured), "
            f"{1000 * made['seconds_per_image']:.3g} ms each: {folder}",
            highlight=False,
            soft_wrap=True,
        )


def labels_of(text: str) -> LabelRule:
    """A rule by its name, a class by its number, or shares of classes with commas between."""
    if text.isdecimal():
        return int(text)
    if "," not in text:
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--labels: {text!r} has parts that are not numbers") from None


def seed_range(text: str) -> tuple[int, int]:
    """First seed and number of seeds of "FIRST-LAST"; ValueError otherwise."""
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise ValueError(f"--seeds wants FIRST-LAST such as 0-999, not {text!r}")
    begin, end = int(first), int(last) if dash else int(first)
    if end < begin:
        raise ValueError(f"--seeds {text}: the last comes before the first")
    return begin, end - begin + 1
