"""How many evaluations a search needs by predictor, by evolution and at random, over some seeds.

python benchmarks/search_strategies.py RUNS [--nfe 5] [--samples 32] [--evaluations 240]
    [--seeds 0,1,2,3,4] [--strategies predictor,evolution,random] [--out FILE.md]

Each search of the bundled digits is kept in RUNS, so that a call that was stopped goes on. The
score is the RMSE to the converged samples of the same noises, which few samples tell well. All
strategies of one seed begin with the same schedules. The report says after how many evaluations the
mean of the best scores, over the seeds, is as low as evolution's in the end; FILE.png shows the
means and, pale, every search.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from fewstep.eval.models import load_model
from fewstep.eval.report import save_figure
from fewstep.eval.report.plots import COLOURS
from fewstep.search.s3 import SearchConfig, search
from fewstep.storage import environment, write_atomically
from matplotlib.figure import Figure
from numpy.typing import NDArray

RIVAL = "evolution"
Curves = Mapping[str, NDArray[np.float64]]


def courses(options: argparse.Namespace) -> tuple[Curves, Curves]:
    """Per strategy the best score after so many evaluations, and the seconds, [seeds, E]."""
    model = load_model("mnist")
    best: dict[str, list[NDArray[np.float64]]] = {}
    spent: dict[str, list[NDArray[np.float64]]] = {}
    for seed in options.seeds:
        for strategy in options.strategies:
            config = SearchConfig.model_validate(
                {
                    "nfe": options.nfe,
                    "measures": ["rmse"],
                    "samples": options.samples,
                    "evaluations": options.evaluations,
                    "strategy": strategy,
                    "space": {"late": -1.77},
                    # What comes after does not matter here.
                    "finalists": 1,
                    "validation": 2,
                    "seed": seed,
                }
            )
            found = search(config, model, options.runs / f"{strategy}-{seed}")[options.nfe]
            scores = [each.verdict.score for each in found.entries[: options.evaluations]]
            seconds = [each.verdict.seconds for each in found.entries[: options.evaluations]]
            best.setdefault(strategy, []).append(np.minimum.accumulate(scores))
            spent.setdefault(strategy, []).append(np.cumsum(seconds))
            print(f"{strategy}, seed {seed}: {min(scores):.4f}, {sum(seconds):.0f} s", flush=True)
    return tuple({name: np.stack(each) for name, each in of.items()} for of in (best, spent))


def reached(curve: NDArray[np.float64], score: float) -> int | None:
    """After how many evaluations a curve is at a score; None if never."""
    there = np.flatnonzero(curve <= score)
    return int(there[0]) + 1 if len(there) else None


def count(number: int | None, of: int) -> str:
    """A number of evaluations in words."""
    return f"not in {of}" if number is None else f"{number}"


def picture(best: Curves) -> Figure:
    """The means over seeds, and every search."""
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, curves) in zip(COLOURS, best.items(), strict=False):
        places = np.arange(1, curves.shape[1] + 1)
        axes.plot(places, curves.T, color=colour, lw=0.6, alpha=0.35)
        axes.plot(places, curves.mean(0), color=colour, lw=2, label=name)
    axes.axhline(best[RIVAL].mean(0)[-1], color="black", lw=0.8, ls=":")
    axes.set(xlabel="schedules evaluated", ylabel="best RMSE to the converged samples so far")
    axes.set_yscale("log")
    axes.legend()
    return figure


def report(options: argparse.Namespace, best: Curves, spent: Curves) -> str:
    """The numbers, as Markdown."""
    env = environment(torch.device("cpu"))
    goals = best[RIVAL][:, -1]
    lines = [
        "# Strategies of a search",
        "",
        f"`python benchmarks/search_strategies.py {options.runs} --nfe {options.nfe} --samples "
        f"{options.samples} --evaluations {options.evaluations} --seeds "
        f"{','.join(map(str, options.seeds))} --strategies {','.join(best)}`: "
        f"searches for a sampler of {options.nfe} "
        f"evaluations of the bundled digits; the score is the RMSE of {options.samples} samples to "
        "the converged ones. `goal` is the mean of the best scores that evolution has in the end, "
        "`goal of the seed` that of the search of the same seed.",
        "",
        f"![The best score so far, means over seeds and every search]({options.out.stem}.png)",
        "",
        "| strategy | best in the end | mean reaches the goal after | each that of its seed | "
        "seconds of a search |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, curves in best.items():
        each = (reached(c, g) for c, g in zip(curves, goals, strict=True))
        lines.append(
            f"| {name} | {curves[:, -1].mean():.4f} +- {curves[:, -1].std():.4f} | "
            f"{count(reached(curves.mean(0), goals.mean()), options.evaluations)} | "
            f"{', '.join(count(n, options.evaluations) for n in each)} | "
            f"{spent[name][:, -1].mean():.0f} |"
        )
    lines += ["", f"Machine: {env['device']}, {env['threads']} threads, Python {env['python']}, "
              f"torch {env['torch']}.", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Search, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--evaluations", type=int, default=240)
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default="0,1,2,3,4"
    )
    parser.add_argument(
        "--strategies", type=lambda text: text.split(","), default="predictor,evolution,random"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/search-strategies.md"))
    options = parser.parse_args()
    if RIVAL not in options.strategies:
        parser.error(f"--strategies: {RIVAL} sets the goal, and is needed")
    best, spent = courses(options)
    save_figure(picture(best), options.out.with_suffix(".png"))
    write_atomically(options.out, report(options, best, spent))
    print(options.out.read_text())


if __name__ == "__main__":
    main()
