"""`fewstep sample`, `train`, `card` and `convert`: models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..eval.card import measure_model, write_card
from ..eval.extractors import extractor
from ..eval.images import quantise, save_grid
from ..eval.models import Draw, NetworkModel, in_batches, load_model, pick_device
from ..eval.progress import Counter
from ..eval.settings import SolverConfig, table_within
from ..eval.sources import open_images
from ..guides.named import GUIDANCE, parsed, sampled, summary
from ..zoo.edm import read_edm, save_edm
from . import console
from .app import app
from .console import Device, Nfe, Spacing, key_values, progress_bar


@app.command(epilog="\n\n".join(map(summary, GUIDANCE)))
def sample(
    solver: Annotated[str, typer.Option(help="See `fewstep solvers`.")] = "unipc-3",
    nfe: Nfe = 10,
    spacing: Spacing = "uniform",
    label: Annotated[
        list[int] | None, typer.Option(help="Repeatable; default: all, in turn.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="A scale (1 is off, the default), or NAME,key=value,..: see below. Repeatable, "
            "the first nearest to the network."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="As in `fewstep generate`.")] = "mnist",
    device: Device = "auto",
    file: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("samples.png"),
) -> None:
    """Draw images from a model into one PNG.

    Example: fewstep sample --solver dpmpp-2m --nfe 8 --label 3 --label 7 --guidance 2

    Guidance by name is listed below, with what its options are by default. For rare digits, after
    `fewstep train minority`: --guidance minority,folder=runs/train-minority
    """
    asked = [parsed(text) for text in guidance or []]
    plain = [each.options["scale"] for each in asked if each.name == "cfg"]
    loaded = load_model(model, pick_device(device))
    table = table_within(
        loaded.schedule,
        SolverConfig(name=solver),
        nfe,
        spacing,
        "zero",
        plain[0] if plain else 1.0,
    )
    labels = None
    if loaded.classes is not None:
        wanted = label or list(range(loaded.classes))
        bad = [each for each in wanted if not 0 <= each < loaded.classes]
        if bad:
            raise ValueError(f"label {bad[0]} is not one of 0 to {loaded.classes - 1}")
        labels = torch.tensor([wanted[i % len(wanted)] for i in range(count)])
    elif label:
        raise ValueError(f"--label {label[0]}: {loaded.name} has no classes")
    draw = Draw(range(seed, seed + count), labels)
    with progress_bar(f"{table.name}, NFE {table.nfe}") as progress:
        counter = Counter(progress, table.nfe * count * (2 if asked else 1))
        if isinstance(loaded, NetworkModel):
            images = sampled(loaded, table, draw, asked, on_call=counter.add)
        elif len(plain) == len(asked) <= 1:
            own = replace(draw, guidance=plain[0] if plain else 1.0)
            images = in_batches(loaded, table, own, on_call=counter.add)
        else:
            raise ValueError(f"{loaded.name} is a whole pipeline, which takes a scale alone")
    save_grid(quantise(images), file)
    console.out.print(
        f"{count} images by {table.name}, NFE {table.nfe} ({counter.done / count:g} network "
        f"evaluations measured): {file}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A name in configs/train, or a YAML file.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, repeatable: override the config.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes; default runs/train-CONFIG.")
    ] = None,
) -> None:
    """Train a bundled model again, or what guidance needs.

    `mnist` (the denoiser), `mnist-classifier`, `text`; `minority` (how rare images are, and a
    classifier of noisy states that tells it); `parts` of a data set, `router` between them, and
    `mnist-small` for experts of parts.

    Checkpoints are kept in OUT, and the same command resumes. Devices and processes are those of
    accelerate: `accelerate launch --num_processes 4 -m fewstep.cli train mnist` uses four GPUs.
    """
    # Here, because trainers take seconds to import.
    from . import tasks

    overrides = key_values("--set", change)
    target = folder or Path("runs") / f"train-{Path(config).stem}"
    with progress_bar(f"train {Path(config).stem}") as progress:
        result = tasks.train(config, target, overrides, progress)
    console.out.print(f"trained: {result}", highlight=False)


@app.command()
def card(
    model: Annotated[str, typer.Option(help="mnist, or the folder of a digit model.")] = "mnist",
    images: Annotated[int, typer.Option(min=100, help="Images for the Frechet distance.")] = 5000,
    judged: Annotated[int, typer.Option(min=100, help="Images that the judge reads.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Where README.md goes.")] = Path(
        "runs/card"
    ),
) -> None:
    """Measure a digit model and write its model card.

    A judge of another architecture, trained here, reads class-conditional samples of 100-step DDIM;
    the Frechet distance and the share of speckled images are compared with those of the real data.
    About ten minutes on 2 CPU cores.
    """
    where = pick_device(device)
    loaded = load_model(model, where)
    if not isinstance(loaded, NetworkModel) or loaded.classes is None:
        raise ValueError(f"{model} is no class-conditional digit model, which the card is about")
    judge = extractor("mnist-classifier", where)
    with progress_bar("card") as progress:
        facts = measure_model(loaded, open_images("mnist"), judge, images, judged, seed, progress)
    path = write_card(facts, folder)
    console.out.print(path.read_text(encoding="utf-8"), markup=False, highlight=False)


@app.command()
def convert(
    network: Annotated[Path, typer.Argument(help="A network of NVIDIA's EDM family, a .pkl.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Execute the file. It can do anything here that you can: only for files that you "
            "would run as a program.",
        ),
    ] = False,
) -> None:
    """Turn an EDM .pkl into config.json and model.safetensors.

    Nothing in the file is executed: architecture and weights are read out of the pickle, and what
    is not known there is refused.
    """
    save_edm(read_edm(network, trust_pickle=trust_pickle), folder)
    console.out.print(f"converted: {folder}", highlight=False)
