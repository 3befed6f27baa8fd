"""Throughput of a population of tables side by side, over the same tables one by one, in one run.

    python benchmarks/population.py [--out docs/population.md]

Both sample the bundled digits by the same P tables from the same M noises, in turns on one thread,
so that both see the same machine: one by one in batches of M, side by side in batches of as many.
Seconds are of processor time, to which other programs add less than to the clock's.
What is gained on a CPU, where larger batches are no faster, is what need not be asked twice.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import torch
from fewstep.eval.models import Draw, NetworkModel, load_model
from fewstep.eval.models.model import counting
from fewstep.samplers import Tableau
from fewstep.search.population import population_images
from fewstep.search.schedule import SolverSchedule
from fewstep.search.space import Space


def drawn(space: Space, count: int) -> list[SolverSchedule]:
    """A first generation: random schedules."""
    rng = np.random.default_rng(0)
    return [space.drawn(rng) for _ in range(count)]


def bred(space: Space, count: int) -> list[SolverSchedule]:
    """A later one: each a child of two of four parents, mutated."""
    rng = np.random.default_rng(1)
    parents = [space.drawn(rng) for _ in range(4)]
    found = []
    for _ in range(count):
        one, other = (parents[k] for k in rng.choice(4, 2, replace=False))
        found.append(space.mutated(space.crossed(one, other, rng), rng))
    return found


def measured(
    model: NetworkModel, tables: Sequence[Tableau], draw: Draw, repeats: int
) -> tuple[list[float], list[int], float]:
    """Processor seconds and evaluated samples of both ways, and how far apart their images are."""

    def apart() -> torch.Tensor:
        return torch.stack([model.images(table, draw) for table in tables])

    def together() -> torch.Tensor:
        return population_images(model, tables, draw, len(draw.seeds))

    runs: list[Callable[[], torch.Tensor]] = [apart, together]
    seconds: list[list[float]] = [[], []]
    evaluated, images = [0, 0], [torch.empty(0)] * 2
    for _ in range(repeats):
        for k, run in enumerate(runs):
            sizes: list[int] = []
            begin = time.process_time()
            with counting(model.network, sizes.append):
                images[k] = run()
            seconds[k].append(time.process_time() - begin)
            evaluated[k] = sum(sizes)
    difference = float((images[0] - images[1]).abs().max())
    return [statistics.median(each) for each in seconds], evaluated, difference


def report(population: int, samples: int, nfe: int, repeats: int) -> str:
    """The measurements, as Markdown."""
    model = load_model("mnist")
    draw = Draw(range(samples), torch.arange(samples) % 10)
    spaces = {
        "": Space(model.schedule, nfe),
        ", starting anywhere before lam = -1.77": Space(model.schedule, nfe, late=-1.77),
    }
    lines = [
        "# Throughput of a population",
        "",
        f"{population} tables of {nfe} evaluations on {samples} samples of the bundled digits, "
        f"float32: processor seconds one by one in batches of {samples} and side by side in "
        f"batches of as many, medians of {repeats} runs in turns, and the samples that the network "
        "evaluated. "
        "Drawn schedules are a first generation of a search, bred ones a later: children of two of "
        "four parents, mutated.",
        "",
        f"- {platform.processor() or platform.machine()}, one thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {date.today()}",
        f"- `python benchmarks/population.py --population {population} --samples {samples} "
        f"--nfe {nfe} --repeats {repeats}`",
        "",
        "| | one by one | side by side | throughput | evaluated | of | images apart |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (where, space), make in product(spaces.items(), (drawn, bred)):
        tables = [each.tableau(model.schedule) for each in make(space, population)]
        (slow, fast), (all_of, asked), difference = measured(model, tables, draw, repeats)
        lines.append(
            f"| {make.__name__}{where} | {slow:.1f} | {fast:.1f} | {slow / fast:.2f} | {asked} "
            f"| {all_of} | {difference:.0e} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print, or write to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = report(given.population, given.samples, given.nfe, given.repeats)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
