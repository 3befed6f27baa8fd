"""`fewstep steer`: samples towards a reward."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..eval.images import quantise, save_grid
from ..eval.models import NetworkModel, load_model, pick_device
from ..eval.models.model import counting
from ..eval.rewards import STATISTICS, total_reward
from ..guides.named import networks_of, parsed
from ..guides.steered import steerable
from ..steering import DRIVERS, Chain, Reward, Steered, Tree, load_tree, save_tree
from ..storage import environment, write_json
from . import console
from .app import app
from .console import Device, Spacing, listed, progress_bar


@app.command(epilog="\n\n".join(f"{name}: {each.summary}" for name, each in DRIVERS.items()))
def steer(
    driver: Annotated[str, typer.Argument(help=f"{', '.join(DRIVERS)}: see below.")] = "dts-star",
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help=f"class:3 (log-probability of a digit), class:3@FOLDER, {', '.join(STATISTICS)}, "
            "or package.module:function of images [B, C, H, W] in [-1, 1]; with a factor as in "
            "-30*brightness. Repeatable: they are added up."
        ),
    ] = None,
    budget: Annotated[
        int,
        typer.Option(
            min=1,
            help="Evaluations of the denoiser in all; with guidance each is several "
            "calls of the network.",
        ),
    ] = 2000,
    count: Annotated[int, typer.Option(min=1, help="How many samples to return.")] = 10,
    scale: Annotated[
        float,
        typer.Option(min=0, help="In the law p(x0) e^(scale reward), of smc and trees."),
    ] = 1.0,
    model: Annotated[str, typer.Option(help="As in `fewstep generate`.")] = "mnist",
    label: Annotated[int | None, typer.Option(help="A class of the model; default: none.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Of a pipeline that takes texts.")] = None,
    guidance: Annotated[list[str] | None, typer.Option(help="As in `fewstep sample`.")] = None,
    solver: Annotated[
        str,
        typer.Option(help="One that draws noise (ddpm, sde-dpmpp-2m); others restart at levels."),
    ] = "ddpm",
    nfe: Annotated[int, typer.Option(min=2, help="Steps of one run.")] = 50,
    spacing: Spacing = "uniform",
    levels: Annotated[
        str, typer.Option(help="Where states are looked at: how many, or nodes: 0,10,20,30,40.")
    ] = "5",
    seed: Annotated[int, typer.Option(min=0, help="All noise and every choice comes of it.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per network call.")] = 64,
    together: Annotated[
        int, typer.Option(min=1, help="Rollouts of a tree made at once: a GPU takes dozens.")
    ] = 4,
    tree: Annotated[
        Path | None, typer.Option(help="A file that a tree goes on from, and is kept in.")
    ] = None,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Gets images.png, steered.json.")] = Path(
        "runs/steer"
    ),
) -> None:
    """Spend network evaluations on samples of a high reward, without training.

    Example: fewstep steer dts-star --reward class:3 --budget 2000

    A tree may grow on: --tree FILE keeps it, also when it is interrupted, and the same command with
    a larger --budget goes on from it. docs/steering.md says which driver is for what.
    """
    if driver not in DRIVERS:
        raise ValueError(f"no driver {driver!r}: there is {', '.join(DRIVERS)}")
    if not reward:
        raise ValueError("say what samples are to be good at: --reward class:3, for example")
    if tree is not None and DRIVERS[driver].rules is None:
        raise ValueError(f"--tree: {driver} grows none; dts and dts-star do")
    where = pick_device(device)
    loaded = load_model(model, where, prompts=() if prompt is None else (prompt,))
    judge = total_reward(reward, where)
    asked = [parsed(text) for text in guidance or []]
    chain, images = steerable(
        loaded,
        solver,
        nfe,
        spacing=spacing,
        levels=levels_of(levels),
        label=label,
        asked=asked,
        batch_size=batch_size,
    )
    start = time.monotonic()
    options: dict[str, Any] = {"count": count, "scale": scale, "seed": seed}
    about = {"model": model, "label": label, "prompt": prompt, "guidance": guidance or []}
    about |= {"reward": reward, "weights": loaded.fingerprint}
    calls: list[int] = []
    with progress_bar(f"{driver}, {chain.table.name}") as progress, ExitStack() as stack:
        chain.meter.watch = lambda meter: progress(min(meter.evaluations, budget), budget, "")
        networks = [loaded.network]
        if isinstance(loaded, NetworkModel):
            networks = networks_of(loaded, asked)
        for network in networks:
            stack.enter_context(counting(network, calls.append))
        kept = Kept(tree, together, json.dumps(about, sort_keys=True))
        found = driven(driver, chain, lambda x: judge(images(x)), budget, kept, options)
    folder.mkdir(parents=True, exist_ok=True)
    save_grid(quantise(images(found.x)), folder / "images.png")
    said = {
        "driver": driver,
        **about,
        "rewards": found.rewards.tolist(),
        "evaluations": found.evaluations,
        "network_calls": sum(calls),
        "reward_calls": found.reward_calls,
        "log_z": found.log_z,
        "seconds": round(time.monotonic() - start, 1),
        "options": {"budget": budget, **options, "batch_size": batch_size, "together": together},
        "table": {
            "name": chain.table.name,
            "nfe": nfe,
            "spacing": spacing,
            "levels": list(chain.levels),
        },
        "tree": None if tree is None else str(tree),
        "environment": environment(where),
    }
    write_json(folder / "steered.json", said)
    console.out.print(
        f"{len(found.rewards)} samples of reward {found.rewards.max():.4g} at best, "
        f"{found.mean_reward():.4g} in the mean, by {found.evaluations} evaluations of the "
        f"denoiser ({sum(calls)} of the network now) and {found.reward_calls} of the reward: "
        f"{folder / 'images.png'}",
        highlight=False,
        soft_wrap=True,
    )


class Kept(NamedTuple):
    """The file of a tree if any, how many of its rollouts go together, and what it is about."""

    file: Path | None
    together: int
    about: str


def driven(
    driver: str,
    chain: Chain,
    reward: Reward,
    budget: int,
    kept: Kept,
    options: dict[str, Any],
) -> Steered:
    """Run a driver; a tree is kept in its file, whatever happens."""
    entry, file = DRIVERS[driver], kept.file
    if entry.rules is None:
        return entry.run(chain, reward, budget, **options)
    rules = entry.rules(options["scale"])
    grown = Tree(rules, options["seed"])
    if file is not None and file.exists():
        grown = load_tree(file, chain, kept.about)
        if (grown.rules, grown.seed) != (rules, options["seed"]):
            raise ValueError(f"{file} has grown by other rules ({grown.rules}) or another seed")
        # What was spent before counts.
        chain.meter.evaluations = grown.evaluations
    try:
        return entry.run(chain, reward, budget, **options, batch=kept.together, tree=grown)
    finally:
        if file is not None and grown.iterations:
            save_tree(grown, chain, file, kept.about)


def levels_of(text: str) -> int | list[int]:
    """How many levels, or their nodes."""
    parts = listed(text) or []
    if not all(part.isdecimal() for part in parts) or not parts:
        raise ValueError(f"--levels: a number, or nodes such as 0,10,20, not {text!r}")
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]
