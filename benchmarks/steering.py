"""What drivers reach for how many evaluations: the bundled digits without labels, towards a class.

python benchmarks/steering.py RUNS --reward runs/other [--classes 0,1,..,9] [--seeds 1]
    [--budgets 100,300,1000,3000,10000] [--solver ddpm] [--steps 50] [--levels 5] [--scale 1]
    [--search-scale 10] [--draws 500] [--out FILE.md]

The reward is the log-probability of a digit under a classifier that evaluations do not use, made by
`fewstep train mnist-classifier --set architecture=lenet --set seed=1 --out runs/other`. For every
class and seed each driver spends each budget: the best reward that it found and the mean of what it
would return are kept. Trees and best-of-N grow on from budget to budget. Of SMC and DTS samples are
drawn at the largest budget, and their Frechet distance to the real digits of the class is taken in
the features of the bundled classifier. Each part is kept in RUNS, so that a call that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fewstep import grid, samplers, zoo
from fewstep.eval.extractors import Extractor, extractor
from fewstep.eval.images import quantise
from fewstep.eval.metrics import frechet_distance, moments
from fewstep.eval.models import NetworkModel, load_model
from fewstep.eval.report import Picture, Section, Table, markdown, save_figure
from fewstep.eval.rewards import reward_of
from fewstep.steering import (
    DRIVERS,
    Chain,
    Reward,
    Steered,
    Tree,
    best_of,
    draw,
    fittest,
    grow_for,
)
from fewstep.storage import environment, read_arrays, write_arrays, write_atomically
from matplotlib.figure import Figure

LAWS = ("smc", "dts")
# Rollouts made together: a batch of one is slow.
TOGETHER = 8


def chain_of(model: NetworkModel, solver: str, steps: int, levels: int) -> Chain:
    """The prior without labels, looked at on evenly spaced levels."""
    table = samplers.build(solver, grid(model.schedule, steps, "uniform"))
    places = tuple(round(k * steps / levels) for k in range(levels))
    return Chain(table, partial(model.denoiser, None), model.shape, places)


def courses(
    name: str, chain: Chain, reward: Reward, budgets: Sequence[int], scale: float, seed: int
) -> Iterator[tuple[Steered, float, float]]:
    """What a driver has at each budget, the best reward and the mean of what it returns."""
    rules = DRIVERS[name].rules
    if rules is not None:
        tree = Tree(rules(scale), seed)
        for budget in budgets:
            batch = max(1, min(TOGETHER, budget // (4 * chain.table.nfe)))
            grow_for(tree, chain, reward, budget, batch=batch)
            best = fittest(tree, 1)
            found = draw(tree, 500, seed=seed) if name in LAWS else best
            yield found, float(best.rewards[0]), found.mean_reward()
    elif name == "best-of":
        # All tries once: the first of them are those of a smaller budget.
        tries = best_of(chain, reward, 1, count=budgets[-1] // chain.table.nfe, seed=seed)
        for budget in budgets:
            first = tries.rewards[: budget // chain.table.nfe]
            best = int(first.argmax())
            one = replace(tries, x=tries.x[[best]], rewards=first[[best]], weights=np.ones(1))
            yield one, float(first.max()), float(first.max())
    else:
        for budget in budgets:
            found = DRIVERS[name].run(chain, reward, budget, count=1, scale=scale, seed=seed)
            if name in LAWS:
                particles = budget // chain.table.nfe
                found = DRIVERS[name].run(
                    chain, reward, budget, count=particles, scale=scale, seed=seed
                )
            yield found, float(found.rewards.max()), found.mean_reward()


def one_part(
    name: str,
    digit: int,
    seed: int,
    chain: Chain,
    reward: Reward,
    given: argparse.Namespace,
    judge: Extractor,
) -> dict[str, np.ndarray]:
    """A driver towards a class: rewards by budget, the last samples and their features."""
    path = given.runs / f"{name}-{digit}-{seed}.npz"
    scale = given.search_scale if name == "dts-star" else given.scale
    key = str([given.budgets, given.solver, given.steps, given.levels, scale, str(given.reward)])
    kept = read_arrays(path, key)
    if kept is not None:
        return kept
    rows = list(courses(name, chain, reward, given.budgets, scale, 1000 * (seed + 1) + digit))
    last = rows[-1][0]
    pixels = quantise(last.x[: given.draws])
    found = {
        "best": np.array([row[1] for row in rows]),
        "mean": np.array([row[2] for row in rows]),
        "pixels": pixels.numpy(),
        "features": judge(pixels).features.numpy(),
    }
    write_arrays(path, key, found)
    print(f"{name} {digit} {seed}: {found['best'].round(3)} {found['mean'].round(3)}", flush=True)
    return found


def summary(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over classes and seeds, [budgets] each."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def fewer(budgets: Sequence[int], ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """At each budget of the other, what share of it reaches as much: between points by log NFE."""
    rising = np.maximum.accumulate(ours)
    found = []
    for budget, goal in zip(budgets, theirs, strict=True):
        if goal > rising[-1]:
            found.append("not reached")
        elif goal <= rising[0]:
            found.append(f"below {budgets[0] / budget:.2f}")
        else:
            found.append(f"{np.exp(np.interp(goal, rising, np.log(budgets))) / budget:.2f}")
    return found


def distances(
    parts: dict[str, list[dict[str, np.ndarray]]], cells: list[tuple[int, int]], judge: Extractor
) -> dict[str, np.ndarray]:
    """Frechet distances of the drawn samples to the real digits of their class."""
    images = zoo.mnist()
    real = {
        digit: moments(judge(quantise(images.images[images.labels == digit])).features)
        for digit in sorted({digit for digit, _ in cells})
    }
    return {
        name: np.array(
            [
                frechet_distance(moments(torch.from_numpy(part["features"])), real[digit])
                for part, (digit, _) in zip(parts[name], cells, strict=True)
            ]
        )
        for name in LAWS
    }


def report(
    given: argparse.Namespace, parts: dict[str, list[dict[str, np.ndarray]]], judge: Extractor
) -> str:
    """Tables of all of it, as Markdown."""
    cells = [(digit, seed) for seed in range(given.seeds) for digit in given.classes]
    budgets = given.budgets
    best = {name: summary(np.stack([p["best"] for p in found])) for name, found in parts.items()}
    mean = {name: summary(np.stack([p["mean"] for p in parts[name]])) for name in LAWS}

    def rows_of(values: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[list[str]]:
        return [
            [name, *(f"{m:.4f} +- {s:.4f}" for m, s in zip(*pair, strict=True))]
            for name, pair in values.items()
        ]

    head = ["driver", *(f"{budget}" for budget in budgets)]
    shares = [
        [name, *fewer(budgets, best[name][0], best["best-of"][0])]
        for name in parts
        if name != "best-of"
    ]
    apart = distances(parts, cells, judge)
    difference = apart["dts"] - apart["smc"]
    count = math.sqrt(len(cells))
    laws = [
        [name, f"{each.mean():.4f} +- {each.std(ddof=1) / count:.4f}"]
        for name, each in {**apart, "dts - smc": difference}.items()
    ]
    share = Table(head, shares)
    picture = Picture(given.out.with_suffix(".png").name, "best reward against evaluations")
    plot(given.out.with_suffix(".png"), budgets, best)
    said = [
        f"the reward is log p(class) by another classifier; {given.solver} at {given.steps} steps, "
        f"{given.levels} levels; classes {', '.join(map(str, given.classes))}, {given.seeds} seeds "
        f"each: means and standard errors over these {len(cells)}",
        f"scale {given.scale:g}, of dts-star {given.search_scale:g}; at most {TOGETHER} rollouts "
        "of a tree at once",
        f"`python benchmarks/steering.py RUNS --reward {given.reward.name} --classes "
        f"{','.join(map(str, given.classes))} --seeds {given.seeds} --budgets "
        f"{','.join(map(str, budgets))} --scale {given.scale:g} --search-scale "
        f"{given.search_scale:g}`",
        ", ".join(f"{k} {v}" for k, v in environment(torch.device("cpu")).items()),
    ]
    title = f"Frechet distance to the real digits of the class ({judge.name} features)"
    law = f"{title}, {given.draws} draws at {budgets[-1]} evaluations"
    sections = [
        Section("Best reward for so many evaluations", (Table(head, rows_of(best)), picture)),
        Section("Share of best-of's evaluations with which others have its reward", (share,)),
        Section("Mean reward of what drivers of the law return", (Table(head, rows_of(mean)),)),
        Section(law, (Table(["driver", "distance"], laws),)),
        Section("How", (said,)),
    ]
    return markdown("Drivers on the bundled digits", sections)


def plot(
    path: Path, budgets: Sequence[int], best: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """The best reward against evaluations."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (middle, error) in best.items():
        axes.errorbar(budgets, middle, error, marker="o", capsize=2, label=name)
    axes.set(xscale="log", xlabel="network evaluations per image", ylabel="best log p(class)")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run what is not there yet, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--reward", type=Path, required=True, help="folder of a classifier")
    parser.add_argument("--classes", type=numbers, default=list(range(10)))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budgets", type=numbers, default=[100, 300, 1000, 3000, 10000])
    parser.add_argument("--drivers", default=",".join(DRIVERS))
    parser.add_argument("--solver", default="ddpm")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--levels", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--search-scale", type=float, default=10.0)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/steering.md"))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, judge = load_model("mnist"), extractor("mnist-classifier")
    if not isinstance(model, NetworkModel):
        raise TypeError("the bundled digits are a network")
    parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in given.drivers.split(",")}
    for seed in range(given.seeds):
        for digit in given.classes:
            reward = reward_of(f"class:{digit}@{given.reward}")
            chain = chain_of(model, given.solver, given.steps, given.levels)
            for name, found in parts.items():
                found.append(one_part(name, digit, seed, chain, reward, given, judge))
    if set(parts) == set(DRIVERS):
        text = report(given, parts, judge)
        write_atomically(given.out, text)
        print(text)


if __name__ == "__main__":
    main()
