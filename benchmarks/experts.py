r"""An ensemble of experts beside one network of the same size and the same training in all.

python benchmarks/experts.py RUNS [--images 5000] [--others 1000] [--solver unipc-3] [--nfe 10]
    [--out FILE.md]

RUNS holds what these commands left, all without labels; an expert takes as many steps as the one
network, with a quarter of its images in each:

    fewstep train parts --set by=classes --set 'groups=[[2,5,7],[6,8,9],[1,3],[0,4]]' \
        --out RUNS/train-parts
    fewstep train mnist-small --set steps=4000 --out RUNS/monolith
    fewstep train mnist-small --set steps=4000 --set batch_size=16 --set labels=RUNS/train-parts \
        --set part=K --set seed=K --out RUNS/expertK                        (K = 0, 1, 2, 3)
    fewstep train router --set labels=RUNS/train-parts --out RUNS/train-router

Frechet distances to the 10,000 real digits, in the features of the bundled classifier, of the same
seeds; how often samples change their expert, and how many experts are asked in the mean. Then the
same with experts and a router that are exactly right, for data that are these digits and no others:
what is left there is the fault of the way in which experts are chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fewstep import grid, samplers, zoo
from fewstep.eval.extractors import extractor
from fewstep.eval.images import quantise, save_grid
from fewstep.eval.metrics import Estimate, FrechetDistance, moments
from fewstep.eval.models import NetworkModel, load_model
from fewstep.eval.models.model import counting
from fewstep.eval.report import Picture, Section, Table, markdown
from fewstep.guides.classifier import load_noisy_classifier
from fewstep.samplers import Denoiser, exact, guidance
from fewstep.samplers.guidance.experts import SWITCHES, Mode
from fewstep.samplers.streams import uniform
from fewstep.schedules.grid import Node
from fewstep.storage import environment, write_atomically
from fewstep.zoo.data.labels import Labels, load_labels

# Samples at once.
BATCH = 100
# Of the stream of a seed, the draw of its part.
DRAW = 2**40
Make = Callable[[range], Denoiser]
# What is measured of more samples, and shown; the first is what the others are compared with.
SHOWN = ("one network", "top-1", "gumbel")


def loaded(folder: Path) -> NetworkModel:
    """A network that a training left."""
    found = load_model(str(folder / "model"))
    if not isinstance(found, NetworkModel):
        raise TypeError(f"{folder} holds no network")
    return found


def models_in(runs: Path) -> list[NetworkModel]:
    """The monolith, and the experts."""
    return [loaded(runs / name) for name in ("monolith", *(f"expert{k}" for k in range(4)))]


def ways(
    whole: Callable[[int], Denoiser],
    experts: Callable[[int], list[Denoiser]],
    router: Callable[[torch.Tensor, Node], torch.Tensor],
    shares: torch.Tensor,
) -> dict[str, Make]:
    """The denoisers of a batch of seeds, by what they are called, from those of a batch's size."""

    def even(x: torch.Tensor, node: Node) -> torch.Tensor:
        return torch.ones(len(x), 4)

    def ensemble(mode: Mode, **options: Any) -> Make:
        def make(seeds: range) -> Denoiser:
            given = dict(options)
            if mode == "oracle":
                u = uniform(list(seeds), DRAW, torch.empty(len(seeds), 1))[:, 0]
                given["choice"] = torch.searchsorted(shares.cumsum(0), u.double()).clamp(max=3)
            else:
                given = {"router": router, **given}
            return guidance.ensemble(experts(len(seeds)), mode=mode, seeds=seeds, **given)

        return make

    return {
        "one network": lambda seeds: whole(len(seeds)),
        "top-1": ensemble("top"),
        "gumbel": ensemble("gumbel"),
        "top-1, restart at switches": ensemble("top", restart=True),
        "top-1, margin .1": ensemble("top", margin=0.1),
        "top-2": ensemble("top", top=2),
        "nucleus .9": ensemble("nucleus"),
        "full": ensemble("full"),
        "sample": ensemble("sample"),
        "sample once": ensemble("sample-once"),
        "oracle": ensemble("oracle"),
        "full, a router that knows nothing": ensemble("full", router=even),
    }


def trained(models: list[NetworkModel], runs: Path, parts: Labels) -> dict[str, Make]:
    """The ways of networks that were trained, and their router."""
    monolith, *experts = models
    router = load_noisy_classifier(runs / "train-router").router()
    return ways(
        partial(monolith.denoiser, None),
        lambda size: [each.denoiser(None, size) for each in experts],
        router,
        parts.shares,
    )


def perfect(images: torch.Tensor, parts: Labels) -> dict[str, Make]:
    """The ways of experts and a router that are right: of the images themselves as all there is."""
    own = [images[parts.labels == k] for k in range(4)]

    def router(x: torch.Tensor, node: Node) -> torch.Tensor:
        evidence = [exact.log_likelihoods(x, node, data).logsumexp(1) for data in own]
        return torch.stack(evidence, 1).softmax(1)

    whole, each = exact.empirical(images), [exact.empirical(data) for data in own]
    return ways(lambda size: whole, lambda size: each, router, parts.shares)


def measured(
    make: Make, networks: list[torch.nn.Module], table: samplers.Tableau, count: int, judge: Any
) -> tuple[Estimate, float, float, torch.Tensor]:
    """Distance to the real digits, evaluations and switches of a sample, and some images."""
    images = zoo.mnist()
    metric = FrechetDistance(moments(judge(quantise(images.images)).features))
    calls: list[int] = []
    switched, shown = 0.0, []
    with torch.no_grad(), ExitStack() as counted:
        for network in networks:
            counted.enter_context(counting(network, calls.append))
        for first in range(0, count, BATCH):
            seeds = range(first, min(first + BATCH, count))
            x = samplers.noise(table.grid, (1, 28, 28), seeds)
            state = samplers.advance(
                samplers.initial(table, x, seeds), make(seeds), table, table.grid.nfe
            )
            pixels = quantise(state.x)
            metric.update(judge(pixels).features)
            switched += float(state.memory.get(SWITCHES, torch.zeros(1)).sum())
            shown.append(pixels)
    return metric.estimate(), sum(calls) / count, switched / count, torch.cat(shown)[:100]


def said_of(distance: Estimate) -> str:
    """A distance and its error."""
    return f"{distance.value:.4f} +- {distance.error:.4f}"


def picture_of(out: Path, name: str) -> Path:
    """Where the samples of a way are shown."""
    return out.with_name(f"{out.stem}-{name.replace(' ', '-')}.png")


def main() -> None:
    """Measure all ways, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--images", type=int, default=5000, help=f"of {', '.join(SHOWN)}")
    parser.add_argument("--others", type=int, default=1000, help="of all ways")
    parser.add_argument("--solver", default="unipc-3")
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/experts.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    judge = extractor("mnist-classifier")
    models = models_in(given.runs)
    networks = [each.network for each in models]
    schedule = models[0].schedule
    table = samplers.build(given.solver, grid(schedule, given.nfe, "uniform"))
    parts = load_labels(given.runs / "train-parts")
    rows, found = [], {}
    for name, make in trained(models, given.runs, parts).items():
        counts = [given.others, *([given.images] if name in SHOWN else [])]
        for count in counts:
            distance, calls, switches, shown = measured(make, networks, table, count, judge)
            found[name] = distance.value
            rows.append([name, f"{count}", said_of(distance), f"{calls:.1f}", f"{switches:.2f}"])
            print(rows[-1], flush=True)
        if name in SHOWN:
            save_grid(shown, picture_of(given.out, name), columns=20)
    right = []
    for name, make in perfect(zoo.mnist().images, parts).items():
        distance, _, switches, _ = measured(make, [], table, given.others, judge)
        right.append([name.replace("one network", "all"), said_of(distance), f"{switches:.2f}"])
        print(right[-1], flush=True)
    head = ["", "samples", "Frechet distance", "network evaluations", "switches"]
    pictures = [Picture(picture_of(given.out, n).name, f"{n}, the same seeds") for n in SHOWN]
    ratios = ", ".join(f"{n} {found[n] / found[SHOWN[0]]:.3f}" for n in SHOWN[1:])
    said = [
        f"over the one network, {given.images} samples: {ratios}",
        "the router, a classifier of a quarter of a network's size, is asked once a node besides; "
        "network evaluations are those of the one network and the experts",
        f"features of {judge.name}; {given.solver} at {given.nfe} steps, seeds from 0",
        f"`python benchmarks/experts.py RUNS --images {given.images} --others {given.others} "
        f"--solver {given.solver} --nfe {given.nfe}`",
        ", ".join(f"{k} {v}" for k, v in environment(torch.device("cpu")).items()),
    ]
    sections = [
        Section("Distance to the real digits", (Table(head, rows), *pictures)),
        Section(
            f"With experts and a router that are exactly right, {given.others} samples",
            (Table(["", "Frechet distance", "switches"], right),),
        ),
        Section("How", (said,)),
    ]
    text = markdown("Experts and one network", sections)
    write_atomically(given.out, text)
    print(text)


if __name__ == "__main__":
    main()
