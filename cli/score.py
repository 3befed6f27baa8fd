"""`fewstep stats`, `fewstep score` and `fewstep doctor`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..eval.doctor import examine
from ..eval.evaluate import (
    first_outputs,
    is_statistics,
    reference_statistics,
    score_images,
    with_members,
)
from ..eval.extractors import EXTRACTORS, Extractor, extractor
from ..eval.formats import check_savable, load_statistics, save_statistics
from ..eval.gaussian import PUBLISHED, gaussian_of
from ..eval.metrics import Estimate
from ..eval.models import pick_device
from ..eval.report.tables import shown, with_error
from ..eval.score import MEASURES, check_metrics, measure_of, takes_members, title
from ..eval.sources import open_images
from ..eval.statistics import MEMBERS, Statistics, facts_of
from ..samplers.gaussian_data import By, GaussianData, check_suffix, load_pca
from ..storage import write_json
from . import console
from .app import app
from .console import Device, key_values, listed, print_lines, progress_bar

Named = Annotated[
    str,
    typer.Option(
        "--extractor",
        help=f"{', '.join(EXTRACTORS)}, or the path of an exported network.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="key=value of the extractor, repeatable, such as path=FILE."),
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Cut images square and resize them; default: as they are.")
]
Convention = Annotated[
    str | None, typer.Option(help="Resize behind a foreign statistics file: tf1, torch, clean.")
]
Batch = Annotated[int, typer.Option(min=1, help="Images per call of the extractor.")]


def built(name: str, options: list[str] | None, device: str) -> Extractor:
    """The extractor that the command line asks for."""
    return extractor(name, pick_device(device), **key_values("--option", options))


@app.command()
def stats(
    source: Annotated[
        str, typer.Argument(help="Images: a folder, .zip, .npz, hf:NAME, mnist. Or statistics.")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--out", help="FILE.npz, or FILE.pkl as EDM2 reads it; --gaussian: FILE.safetensors."
        ),
    ],
    extractor: Named = "inception",
    option: Options = None,
    members: Annotated[
        int | None,
        typer.Option(min=0, help="Features to keep too, for KID and precision; default 10,000."),
    ] = None,
    size: Size = None,
    convention: Convention = None,
    batch_size: Batch = 100,
    gaussian: Annotated[
        bool, typer.Option("--gaussian", help="The normal law of the pixels, for teleportation.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Its leading directions to keep; default: all.")
    ] = None,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="One law for each label (folder, .npz, dataset.json)."),
    ] = False,
    clusters: Annotated[
        int | None, typer.Option(min=1, help="One law for each of so many clusters (k-means).")
    ] = None,
    device: Device = "auto",
) -> None:
    """Reference statistics of real images, once and for all; or turn those of another program.

    The .npz is read by EDM, pytorch-fid, clean-fid and ADM too (mu, sigma, mu_s, sigma_s). Files of
    EDM, EDM2 (.pkl), ADM, clean-fid, pytorch-fid and score_sde are read. Take the training set that
    the paper took: for CIFAR-10 that is all 50,000 training images.

    With --gaussian it is the mean and covariance of the pixels, for runs that begin late (`start`
    of a solver, `generate --teleport`), also from the PCA files that are published (.pt):

    fewstep stats mnist --gaussian --rank 128 --per-class --out mnist-gaussian.safetensors
    """
    if gaussian:
        refuse(
            {"--members": members, "--convention": convention, "--option": option},
            "is about features, and --gaussian about pixels",
        )
        laws = gaussian_laws(source, file, rank, per_class, clusters, size, batch_size)
        console.out.print(f"{spoken(laws)}: {file}", highlight=False, soft_wrap=True)
        return
    refuse(
        {"--rank": rank, "--per-class": per_class or None, "--clusters": clusters},
        "is about normal laws of pixels: say --gaussian, too",
    )
    if is_statistics(Path(source)):
        # No network is needed to rewrite a file.
        refuse(
            {"--members": members, "--size": size, "--option": option},
            f"is about images, and {source} holds statistics of some",
        )
        found = load_statistics(Path(source), extractor, convention)
    else:
        used = built(extractor, option, device)
        check_savable(facts_of(used), file)
        with progress_bar("stats") as progress:
            found = reference_statistics(
                source,
                used,
                size=size,
                convention=convention,
                members=MEMBERS if members is None else members,
                batch_size=batch_size,
                progress=progress,
            )
    save_statistics(found, file)
    console.out.print(f"{described(found)}: {file}", highlight=False, soft_wrap=True)


def refuse(options: dict[str, Any], reason: str) -> None:
    """ValueError that names the first option that was given."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} {reason}")


def gaussian_laws(
    source: str,
    file: Path,
    rank: int | None,
    per_class: bool,
    clusters: int | None,
    size: int | None,
    batch_size: int,
) -> GaussianData:
    """Write the normal laws of images, or of a published PCA, to a file."""
    check_suffix(file)
    if per_class and clusters is not None:
        raise ValueError("--per-class and --clusters are two ways to tell images apart: give one")
    if Path(source).suffix in PUBLISHED:
        if per_class or clusters is not None or size is not None:
            raise ValueError(f"{source} is one law already: --rank is all that can be chosen")
        laws = load_pca(source, rank)
    else:
        images = open_images(source, size)
        by: By = "class" if per_class else "all" if clusters is None else "cluster"
        with progress_bar("stats") as progress:
            laws = gaussian_of(
                images, by, rank, count=clusters or 1, batch_size=batch_size, progress=progress
            )
    laws.save(file)
    return laws


def spoken(laws: GaussianData) -> str:
    """What normal laws are of, and how much of the variance their directions hold, in a line."""
    count, dim, rank = laws.law.vectors.shape
    low, high = laws.explained.min(), laws.explained.max()
    share = f"{low:.2%}" if count == 1 else f"{low:.2%} to {high:.2%}"
    kind = "1 normal law" if count == 1 else f"{count} normal laws by {laws.by}"
    origin = laws.origin.get("images", laws.origin.get("data"))
    return f"{kind} of {origin}, {rank} of {dim} directions with {share} of the variance"


def described(found: Statistics) -> str:
    """What statistics are of, in a line."""
    count = "an unknown number of" if found.features.n is None else f"{found.features.n}"
    extra = [f"{len(found.members)} features"] if found.members is not None else []
    extra += ["spatial moments"] if found.spatial is not None else []
    # Sums are long, and their beginning tells.
    facts = ", ".join(f"{k} {v if len(v) < 64 else v[:16]}" for k, v in found.facts.items())
    return f"{count} images ({facts})" + "".join(f", with {each}" for each in extra)


@app.command()
def score(
    source: Annotated[str, typer.Argument(help="Images: a folder, .zip, .npz, hf:NAME, mnist.")],
    reference: Annotated[
        str, typer.Option("--ref", help="Statistics (.npz, .pkl), or real images like SOURCE.")
    ],
    extractor: Named = "inception",
    option: Options = None,
    metrics: Annotated[str, typer.Option(help=f"Some of {', '.join(MEASURES)}.")] = "frechet",
    size: Size = None,
    convention: Convention = None,
    batch_size: Batch = 100,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Do not shuffle: Inception scores as ADM's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    file: Annotated[Path | None, typer.Option("--out", help="Also write the JSON there.")] = None,
    device: Device = "auto",
) -> None:
    """Measure images against real ones: FID, KID, IS, precision and recall, sFID, CMMD.

    Every number comes with its standard error and the name of its extractor; only features of the
    Inception of 2015 give a FID. Example without any download:

    fewstep score runs/images --ref mnist --extractor mnist-classifier --metrics frechet,kernel
    """
    names = listed(metrics)
    if not names:
        raise ValueError(f"--metrics names none; choose from {', '.join(MEASURES)}")
    used = built(extractor, option, device)
    images = open_images(source, size)
    check_metrics(names, used, first_outputs(images, used))
    if images.lossy and not as_json:
        console.err.print("[yellow]some images are JPEG files, which alone moves the numbers[/]")
    with progress_bar("score") as progress:
        real = reference_statistics(
            reference,
            used,
            size=size,
            convention=convention,
            batch_size=batch_size,
            progress=progress,
        )
        if takes_members(names):
            real = with_members(real, reference, used, batch_size, progress)
        found = score_images(
            images,
            real,
            used,
            names,
            batch_size=batch_size,
            shuffle=not in_order,
            progress=progress,
        )

    record: dict[str, Any] = {
        "images": images.name,
        "n": images.count,
        "lossy": images.lossy,
        "reference": reference,
        "n_reference": real.features.n,
        "extractor": used.name,
        "fingerprint": used.fingerprint,
        "facts": dict(used.facts),
        "values": {
            name: {"title": title(name, used.name), **each.summary} for name, each in found.items()
        },
    }
    if file is not None:
        write_json(file, record)
    if as_json:
        console.out.print(
            json.dumps(record, indent=2, allow_nan=False),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    heading = (
        f"{images.count} images against {real.features.n or '?'}, {used.name} {used.fingerprint}"
    )
    print_lines(heading, [line(name, each, used.name) for name, each in found.items()])


def line(name: str, found: Estimate, extractor: str) -> list[str]:
    """A value with its standard error, and what it is; the number first, as titles are long."""
    text = title(name, extractor)
    if math.isfinite(found.corrected) and measure_of(name).biased:
        text += f"; without bias {shown(found.corrected)}"
    return [with_error(found.value, found.error), text]


@app.command()
def doctor(device: Device = "auto") -> None:
    """Say what is installed, which weights are found, and what would be downloaded."""
    where = pick_device(device)
    for heading, rows in examine(where).items():
        print_lines(heading, rows)
