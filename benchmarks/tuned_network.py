"""A fine-tuned network beside the best that its own weights do in as many steps.

python benchmarks/tuned_network.py FOLDER [--judge CLASSIFIER] [--images 2000] [--out FILE.md]

FOLDER is the model that `fewstep distill mmd` left (runs/mmd-mnist/model). The judge, which it must
not be trained on, is the bundled classifier, or that of a folder. Of the untuned network all
deterministic solvers run on all spacings with both ends, and the tables that come with fewstep: on
64 images first, then the best 24 on 256, the best 6 on all. What is best there is said by the
Frechet distance between the judge's features of the samples and those of UniPC-3 at 50 steps, of
the same noises, so that a few tell much.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fewstep import Tableau, grid, samplers
from fewstep.eval.card import speckled
from fewstep.eval.extractors import extractor
from fewstep.eval.images import dequantise, quantise, save_grid
from fewstep.eval.metrics import frechet_distance
from fewstep.eval.models import Draw, in_batches, label_rule, load_model, pick_device
from fewstep.eval.sources import open_images
from fewstep.eval.statistics import collect_statistics
from fewstep.storage import environment, write_atomically
from fewstep.zoo import mnist
from learned_tables import hand_made, seen, unlike
from torch import Tensor

STAGES = ((64, 24), (256, 6))
SHOWN = 60


class Judge:
    """What is measured of samples: distances in features, neighbours and speckle in pixels."""

    def __init__(self, folder: Path | None, images: int, device: torch.device) -> None:
        options = {} if folder is None else {"path": str(folder)}
        self.features = extractor("mnist-classifier", device, **options)
        data = open_images("mnist")
        self.real = collect_statistics(data, self.features)
        self.pixels = data.read(range(data.count))
        # A Frechet distance notices another mix of classes.
        self.labels = tuple(map(float, torch.bincount(mnist()[1]).tolist()))
        self.images, self.device = images, device
        self.flat = dequantise(self.pixels).flatten(1)
        others = self.nearest(self.flat[:images], skip=True)
        self.apart = float(others.median())

    def samples(self, model, table: Tableau, images: int) -> Tensor:
        """The uint8 samples of the first seeds."""
        seeds = range(images)
        labels = label_rule(self.labels, model.classes, model.shape, seeds, "cpu")
        return quantise(in_batches(model, table, Draw(seeds, labels)))

    def frechet(self, pixels: Tensor) -> float:
        """The Frechet distance to the data."""
        return frechet_distance(seen(self.features, pixels), self.real.features)

    def nearest(self, x: Tensor, skip: bool = False) -> Tensor:
        """The distance of each image from the nearest real one (or the nearest other one)."""
        found = [
            torch.cdist(part, self.flat).topk(1 + skip, 1, False).values[:, -1]
            for part in x.split(500)
        ]
        return torch.cat(found)

    def row(self, name: str, pixels: Tensor) -> list[str]:
        """A line of the report."""
        near = float(self.nearest(dequantise(pixels).flatten(1)).median()) / self.apart
        share = 100 * float(speckled(pixels).double().mean())
        return [name, f"{self.frechet(pixels):.3f}", f"{near:.2f}", f"{share:.1f} %"]


def best_untuned(judge: Judge, model, table: Tableau, converged: Tensor) -> tuple[str, Tensor]:
    """The samples of the table that is nearest to the data, of all that there are."""
    left = {table.name: table, **dict(hand_made(model.schedule, table.nfe))}
    for name in samplers.families():
        family = samplers.load_family(name)
        if table.nfe in family and family[table.nfe].grid.schedule == model.schedule:
            left[name] = family[table.nfe]
    for images, survivors in STAGES:
        found = {}
        for name, each in left.items():
            try:
                made = judge.samples(model, each, images)
            except ValueError:
                # Samples that are not finite.
                continue
            found[name] = unlike(judge.features, made, converged[:images])
        left = {name: left[name] for name in sorted(found, key=lambda n: found[n])[:survivors]}
    samples = {name: judge.samples(model, each, judge.images) for name, each in left.items()}
    best = min(samples, key=lambda name: judge.frechet(samples[name]))
    return best, samples[best]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    judge = Judge(options.judge, options.images, device)
    plain, tuned = (load_model(str(name), device) for name in (options.model, options.folder))
    table = Tableau.load(options.folder / "table.json")
    same, after = (judge.samples(each, table, options.images) for each in (plain, tuned))
    many = judge.samples(
        plain,
        samplers.build("unipc-3", grid(plain.schedule, 50, "uniform")),
        options.images,
    )
    name, best = best_untuned(judge, plain, table, many)
    rows = [
        judge.row(f"{table.name} at {table.nfe}, fine-tuned", after),
        judge.row(f"{table.name} at {table.nfe}, as it was", same),
        judge.row(f"the best of all untuned: {name}", best),
        judge.row("unipc-3 at 50", many),
    ]
    env = environment(device)
    by = f" --judge {options.judge}" if options.judge else ""
    lines = [
        "# A fine-tuned network beside all untuned samplers",
        "",
        f"`python benchmarks/tuned_network.py {options.folder} --images {options.images}{by}`: "
        f"{options.images} samples (seeds from 0), of the classes as often as in the data. The "
        f"Frechet distance is in {judge.features.name} features, which were not trained on; "
        "neighbours are the median distance of a sample's pixels from the nearest real image, over "
        "that of real images from the nearest other one; speckled images have a bright pixel away "
        "from all ink "
        f"({100 * float(speckled(judge.pixels).double().mean()):.1f} % of the data).",
        "",
        "| | Frechet distance | neighbours | speckled |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Machine: {env['device']}, {env['threads']} threads, Python {env['python']}, "
        f"torch {env['torch']}.",
    ]
    print("\n".join(lines))
    if options.out is not None:
        write_atomically(options.out, "\n".join(lines) + "\n")
        sets = (("tuned", after), ("untuned", same), ("best", best))
        for label, pixels in sets:
            save_grid(pixels[:SHOWN], options.out.with_name(f"{options.out.stem}-{label}.png"))


if __name__ == "__main__":
    main()
