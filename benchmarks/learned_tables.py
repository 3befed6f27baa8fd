"""Learned or searched tables beside hand-made solvers on all spacings, on noises unseen before.

python benchmarks/learned_tables.py TABLES .. [--nfe 3,4,5,6,8,10] [--images 2000]
    [--judge CLASSIFIER] [--solvers NAME,..] [--out FILE.md]

TABLES are families of tables: names of those that come with fewstep, files, or folders of runs. The
reference is UniPC-3 at 100 steps. All deterministic solvers, or those of --solvers, run on all
spacings with both ends at each NFE: on 32 noises first, then on 128 and 500 those that are best so
far by RMSE to the reference, and those by the Frechet distance between its features and theirs (of
the same noises, so that a few tell much); the rest on all. The Frechet distances of the report are
those of the bundled classifier's features to 10,000 digits; the excess is over the reference's own
on the same seeds. Tables may have been made with these features: the judge is another classifier (a
folder that `fewstep train mnist-classifier` left), by whose features the table and the hand-made
one of the least distance are measured, too. FILE.png shows samples of the same noises, a row each:
the reference's, and for each NFE those of the hand-made solver of the least RMSE and of the tables.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from fewstep import Tableau, build, grid, load_family, samplers, schedules
from fewstep.eval.evaluate import outputs_of
from fewstep.eval.extractors import Extractor, extractor
from fewstep.eval.images import quantise, save_grid
from fewstep.eval.metrics import Moments, frechet_distance, moments
from fewstep.eval.models import Draw, in_batches, label_rule, load_model, pick_device
from fewstep.eval.sources import in_memory, open_images
from fewstep.eval.statistics import collect_statistics
from fewstep.search import population_images
from fewstep.storage import environment, write_atomically
from torch import Tensor

SPACINGS = (*schedules.SPACINGS, "linspace", "leading", "trailing", "quad")
# Samples in a row of the picture.
SHOWN = 20
# Noises, and how many of the best by RMSE and by features go on.
STAGES = ((32, 24, 24), (128, 6, 8), (500, 2, 4))


def hand_made(
    law: schedules.Schedule, nfe: int, names: Sequence[str] | None = None
) -> Iterator[tuple[str, Tableau]]:
    """Every deterministic solver (of these) on every spacing that takes exactly `nfe`, once."""
    seen = set()
    for name in names or [each.name for each in samplers.solvers()]:
        for spacing in SPACINGS:
            for end in ("zero", "min"):
                try:
                    table = samplers.build_within(
                        name,
                        nfe,
                        lambda n: grid(law, n, spacing, end=end),  # noqa: B023
                    )
                except ValueError:
                    continue
                key = (table.carry.tobytes(), table.weights.tobytes(), table.grid.time.tobytes())
                if table.nfe == nfe and not table.stochastic and key not in seen:
                    seen.add(key)
                    yield f"{name}, {spacing}, end {end}", table


def unlike(features: Extractor, samples: Tensor, others: Tensor) -> float:
    """The Frechet distance between features of as many uint8 samples of the same noises."""
    with warnings.catch_warnings():
        # What few samples add to it is alike for all that are compared.
        warnings.simplefilter("ignore")
        return frechet_distance(seen(features, samples), seen(features, others))


def seen(features: Extractor, samples: Tensor) -> Moments:
    """The moments of the features of uint8 samples."""
    return moments(outputs_of(in_memory("samples", samples), features).features)


class Bench:
    """A model with the converged samples of some seeds, and the statistics of its data."""

    def __init__(
        self, images: int, batch_size: int, device: torch.device, judge: Path | None = None
    ) -> None:
        self.model = load_model("mnist", device)
        self.batch_size = batch_size
        self.seeds = range(images)
        self.labels = label_rule(
            "balanced", self.model.classes, self.model.shape, self.seeds, "cpu"
        )
        folders = [None] if judge is None else [None, judge]
        self.extractors = [
            extractor("mnist-classifier", device, **({} if each is None else {"path": str(each)}))
            for each in folders
        ]
        self.features = self.extractors[0]
        data = open_images("mnist")
        self.real = [collect_statistics(data, each).features for each in self.extractors]
        self.reference = self.samples(build("unipc-3", grid(self.model.schedule, 100, "uniform")))
        self.own = self.distances(self.reference)

    def samples(self, table: Tableau, images: int | None = None) -> Tensor:
        """The samples of a table on the first seeds, or all."""
        draw = Draw(self.seeds, self.labels).part(slice(images))
        return in_batches(self.model, table, draw, self.batch_size)

    def rmse(self, samples: Tensor) -> float:
        """The distance to the reference."""
        gap = samples.double() - self.reference[: len(samples)].double()
        return float(gap.square().mean().sqrt())

    def distances(self, samples: Tensor) -> list[float]:
        """The Frechet distances to the data, by each extractor."""
        pixels = quantise(samples)
        pairs = zip(self.extractors, self.real, strict=True)
        return [frechet_distance(seen(features, pixels), real) for features, real in pairs]

    def excess(self, samples: Tensor) -> list[float]:
        """How much farther from the data they are than the reference."""
        pairs = zip(self.distances(samples), self.own, strict=True)
        return [found - own for found, own in pairs]

    def best(self, nfe: int, solvers: Sequence[str] | None) -> dict[str, Tensor]:
        """The samples of the hand-made solvers that are nearest to the reference, or the data."""
        left = dict(hand_made(self.model.schedule, nfe, solvers))
        for images, near, like in STAGES:
            images = min(images, len(self.seeds))
            draw = Draw(self.seeds, self.labels).part(slice(images))
            # Most begin alike: what they ask alike is asked once.
            made = population_images(self.model, list(left.values()), draw)
            found = dict(zip(left, made.cpu(), strict=True))
            errors = {name: self.rmse(each) for name, each in found.items()}
            kept = sorted((n for n in errors if errors[n] == errors[n]), key=lambda n: errors[n])
            truth = quantise(self.reference[:images])
            distances = {n: unlike(self.features, quantise(found[n]), truth) for n in kept}
            best = [*kept[:near], *sorted(kept, key=lambda n: distances[n])[:like]]
            left = {name: left[name] for name in dict.fromkeys(best)}
        return {name: self.samples(table) for name, table in left.items()}


def beside(ours: float, theirs: float, name: str) -> list[str]:
    """Two numbers with their ratio, and whose the second is."""
    # At or below the reference's own there is nothing to be a ratio of.
    ratio = f"{ours / theirs:.2f}" if min(ours, theirs) > 0 else ""
    return [f"{ours:.4f}", f"{theirs:.4f}", ratio, name]


def write(
    options: argparse.Namespace,
    bench: Bench,
    wanted: list[int],
    rows: list[str],
    shown: list[Tensor],
) -> None:
    """Write the report of what there is so far: a run that is stopped leaves it."""
    env = environment(bench.model.device)
    names = " ".join(map(str, options.tables))
    by = f" --nfe {options.nfe}" if options.nfe else ""
    by += f" --judge {options.judge}" if options.judge else ""
    among = "all deterministic solvers"
    if options.solvers:
        by += f" --solvers {','.join(options.solvers)}"
        among = ", ".join(options.solvers)
    heads = ["NFE", "table", "RMSE, table", "best hand-made", "ratio", "which"]
    heads += ["excess, table", *heads[3:]]
    judged = ""
    if options.judge:
        heads += ["by the judge, table", "that hand-made"]
        judged = f"; the judge is another classifier, which no table has seen ({bench.own[1]:.4f})"
    lines = [
        "# Tables beside hand-made solvers",
        "",
        f"`python benchmarks/learned_tables.py {names} --images {options.images}{by}`: "
        f"the bundled digit model, {options.images} noises (seeds from 0) that the tables were not "
        "made with. RMSE to the converged samples (UniPC-3, 100 steps) and the Frechet distance "
        f"in {bench.features.name} features in excess of theirs ({bench.own[0]:.4f}), each beside "
        f"the best of {among} on all spacings by that measure (those far behind on 32, 128 or 500 "
        f"of the noises went no further){judged}.",
        "",
        f"![Rows: the converged samples, then for {', '.join(map(str, wanted))} evaluations those "
        f"of the hand-made solver of the least RMSE and of the tables]({options.out.stem}.png)",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *rows,
        "",
        f"Machine: {env['device']}, {env['threads']} threads, Python {env['python']}, "
        f"torch {env['torch']}.",
    ]
    write_atomically(options.out, "\n".join(lines) + "\n")
    pixels = torch.cat([quantise(each[:SHOWN]) for each in shown])
    save_grid(pixels, options.out.with_suffix(".png"), len(shown[0][:SHOWN]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--nfe", default="")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--solvers", type=lambda text: text.split(","))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    families = {path: load_family(path) for path in options.tables}
    known = sorted(set[int]().union(*families.values()))
    wanted = [int(each) for each in options.nfe.split(",") if each] or known
    bench = Bench(options.images, options.batch_size, device, options.judge)
    rows, shown = [], [bench.reference]
    for nfe in wanted:
        theirs = bench.best(nfe, options.solvers)
        errors = {name: bench.rmse(each) for name, each in theirs.items()}
        excess = {name: bench.excess(each) for name, each in theirs.items()}
        nearest = min(errors, key=lambda name: errors[name])
        alike = min(excess, key=lambda name: excess[name][0])
        least = excess[alike]
        shown.append(theirs[nearest])
        for path, tables in families.items():
            if nfe not in tables:
                continue
            made = bench.samples(tables[nfe])
            ours = bench.excess(made)
            cells = [
                str(nfe),
                path.name,
                *beside(bench.rmse(made), errors[nearest], nearest),
                *beside(ours[0], least[0], alike),
                *(f"{each:.4f}" for pair in zip(ours[1:], least[1:], strict=True) for each in pair),
            ]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
            shown.append(made)
            if options.out is not None:
                write(options, bench, wanted, rows, shown)


if __name__ == "__main__":
    main()
