"""What drivers reach for how many evaluations: the bundled digits without labels, towards a class.

python benchmarks/steering.py RUNS --reward runs/other [--classes 0,1,..,9] [--seeds 1]
    [--budgets 100,300,1000,3000,10000] [--solver ddpm] [--steps 50] [--levels 14,20,26,32,40]
    [--scale 1] [--search-scale 10] [--draws 500] [--out FILE.md]

The reward is the log-probability of a digit under a classifier that evaluations do not use, made by
`fewstep train mnist-classifier --set architecture=lenet --set seed=1 --set label_smoothing=0 --out
runs/other`. Levels are where it is decided what digit it will be. For every class and seed each
driver spends each budget: the best reward that it found and the mean of what it would return are
kept. Trees and best-of-N grow on from budget to budget. Of SMC and DTS samples are drawn at the
largest budget, and their Frechet distance to the real digits of the class is taken in the features
of the bundled classifier. Each part is kept in RUNS, so that a call that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
    smc,
)
from fewstep.storage import (
    digest,
    environment,
    fingerprint,
    read_arrays,
    write_arrays,
    write_atomically,
)
from matplotlib.figure import Figure

LAWS = ("smc", "dts")
# Rollouts made together: a batch of one is slow.
TOGETHER = 8


def chain_of(model: NetworkModel, solver: str, steps: int, levels: Sequence[int]) -> Chain:
    """The prior without labels, looked at on some nodes."""
    table = samplers.build(solver, grid(model.schedule, steps, "uniform"))
    return Chain(table, partial(model.denoiser, None), model.shape, tuple(levels))


@dataclass(frozen=True, eq=False)
class Course:
    """A driver at a budget: what it spent, the best reward it found, and what it would return."""

    spent: int
    best: float
    found: Steered


def courses(
    name: str,
    chain: Chain,
    reward: Reward,
    budgets: Sequence[int],
    scale: float,
    draws: int,
    seed: int,
) -> Iterator[Course]:
    """What a driver has at each budget; of the drivers of a law that many draws."""
    rules = DRIVERS[name].rules
    if rules is not None:
        tree = Tree(rules(scale), seed)
        for budget in budgets:
            grow_for(tree, chain, reward, budget, batch=TOGETHER)
            best = fittest(tree, 1)
            found = draw(tree, draws, seed=seed) if name in LAWS else best
            yield Course(tree.evaluations, float(best.rewards[0]), found)
    elif name == "best-of":
        # All tries once: the first of them are those of a smaller budget.
        tries = best_of(chain, reward, 1, count=budgets[-1] // chain.table.nfe, seed=seed)
        for budget in budgets:
            first = budget // chain.table.nfe
            one = replace(tries, x=tries.x[:first], rewards=tries.rewards[:first]).fittest(1)
            yield Course(first * chain.table.nfe, float(one.rewards[0]), one)
    else:
        for budget in budgets:
            # Of the particles, all of them.
            count = budget // chain.table.nfe
            if name == "smc":
                every = smc(chain, reward, count, scale=scale, seed=seed)
                best, found = float(every.rewards.max()), every.drawn(draws, seed)
            else:
                every = found = DRIVERS[name].run(chain, reward, budget, scale=scale, seed=seed)
                best = float(found.rewards[0])
            yield Course(every.evaluations, best, found)


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
    said = [given.budgets, given.solver, given.steps, given.levels, scale, given.draws, TOGETHER]
    rules = DRIVERS[name].rules
    key = digest(said, given.weights, repr(rules(scale)) if rules else name)
    kept = read_arrays(path, key)
    if kept is not None:
        return kept
    place = 1000 * (seed + 1) + digit
    rows = list(courses(name, chain, reward, given.budgets, scale, given.draws, place))
    last = rows[-1].found
    pixels = quantise(last.x)
    found = {
        "spent": np.array([row.spent for row in rows]),
        "best": np.array([row.best for row in rows]),
        "mean": np.array([row.found.mean_reward() for row in rows]),
        "distinct": np.array(len(last.x.flatten(1).unique(dim=0))),
        "pixels": pixels.numpy(),
        "features": judge(pixels).features.numpy(),
    }
    write_arrays(path, key, found)
    print(f"{name} {digit} {seed}: {found['best'].round(3)} {found['mean'].round(3)}", flush=True)
    return found


def summary(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over classes and seeds, [budgets] each."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def fewer(
    spent: np.ndarray, budgets: Sequence[int], ours: np.ndarray, theirs: np.ndarray
) -> list[str]:
    """At each budget of the other, what share of it reaches as much: between points by log NFE."""
    rising = np.maximum.accumulate(ours)
    found = []
    for budget, goal in zip(budgets, theirs, strict=True):
        if goal > rising[-1]:
            found.append("not reached")
        elif goal <= rising[0]:
            found.append(f"below {spent[0] / budget:.2f}")
        else:
            found.append(f"{np.exp(np.interp(goal, rising, np.log(spent))) / budget:.2f}")
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
    spent = {name: np.stack([p["spent"] for p in found]).mean(0) for name, found in parts.items()}
    mean = {name: summary(np.stack([p["mean"] for p in parts[name]])) for name in LAWS}

    def rows_of(values: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[list[str]]:
        return [
            [name, *(f"{m:.3g} +- {s:.2g}" for m, s in zip(*pair, strict=True))]
            for name, pair in values.items()
        ]

    head = ["driver", *(f"{budget}" for budget in budgets)]
    shares = [
        [name, *fewer(spent[name], budgets, best[name][0], best["best-of"][0])]
        for name in parts
        if name != "best-of"
    ]
    apart = distances(parts, cells, judge)
    difference = apart["dts"] - apart["smc"]
    count = math.sqrt(len(cells))
    several = {name: f"{np.mean([part['distinct'] for part in parts[name]]):.0f}" for name in LAWS}
    laws = [
        [name, f"{each.mean():.4f} +- {each.std(ddof=1) / count:.4f}", several.get(name, "")]
        for name, each in {**apart, "dts - smc": difference}.items()
    ]
    share = Table(head, shares)
    picture = Picture(given.out.with_suffix(".png").name, "best reward against evaluations")
    plot(given.out.with_suffix(".png"), spent, best)
    said = [
        f"the reward is log p(class) by another classifier; {given.solver} at {given.steps} steps, "
        f"levels {listed(given.levels)}; classes {listed(given.classes)}, seeds: {given.seeds} "
        f"each; means and standard errors over these {len(cells)}",
        f"scale {given.scale:g}, of dts-star {given.search_scale:g}; at most {TOGETHER} rollouts "
        "of a tree at once",
        f"`python benchmarks/steering.py RUNS --reward {given.reward.name} --classes "
        f"{listed(given.classes)} --seeds {given.seeds} --budgets {listed(budgets)} "
        f"--solver {given.solver} --steps {given.steps} --levels {listed(given.levels)} --scale "
        f"{given.scale:g} --search-scale {given.search_scale:g} --draws {given.draws}`",
        ", ".join(f"{k} {v}" for k, v in environment(torch.device("cpu")).items()),
    ]
    title = f"Frechet distance to the real digits of the class ({judge.name} features)"
    law = f"{title}, {given.draws} draws at {budgets[-1]} evaluations"
    sections = [
        Section("Best reward for so many evaluations", (Table(head, rows_of(best)), picture)),
        Section(
            "Evaluations spent, in the mean",
            (Table(head, [[n, *(f"{v:.0f}" for v in each)] for n, each in spent.items()]),),
        ),
        Section("Share of best-of's evaluations with which others have its reward", (share,)),
        Section("Mean reward of what drivers of the law return", (Table(head, rows_of(mean)),)),
        Section(law, (Table(["driver", "distance", "distinct samples"], laws),)),
        Section("How", (said,)),
    ]
    return markdown("Drivers on the bundled digits", sections)


def plot(
    path: Path, spent: dict[str, np.ndarray], best: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """The best reward against evaluations."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (middle, error) in best.items():
        axes.errorbar(spent[name], middle, error, marker="o", capsize=2, label=name)
    axes.set(xscale="log", xlabel="network evaluations per image", ylabel="best log p(class)")
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set_ylim(top=5e-7)
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def listed(values: Sequence[int]) -> str:
    """The same between commas."""
    return ",".join(map(str, values))


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
    parser.add_argument("--levels", type=numbers, default=[14, 20, 26, 32, 40])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--search-scale", type=float, default=10.0)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs/steering.md"))
    given = parser.parse_args()
    given.budgets = sorted({*given.budgets})
    if given.seeds * len(given.classes) < 2:
        parser.error("standard errors need two classes or seeds")
    given.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, judge = load_model("mnist"), extractor("mnist-classifier")
    if not isinstance(model, NetworkModel):
        raise TypeError("the bundled digits are a network")
    given.weights = [model.fingerprint, fingerprint(zoo.load_classifier(given.reward))]
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
