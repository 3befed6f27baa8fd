"""Cost of one solver step and of compiling a table, beside diffusers' schedulers, in one run.

    python benchmarks/step_cost.py [--out docs/step-cost.md]

One thread, a network that returns a constant tensor, medians over interleaved repetitions, so that
all contenders see the same machine. diffusers' `step` includes its conversion of the network's
output; ours are `TableauScheduler.step` with the config of that class, and `advance` with a
denoiser made from an eps network, conversion included too.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import fewstep
import torch
from fewstep.samplers import advance, build, denoiser, initial

STEPS = 20
SHAPES = ((1, 4, 8, 8), (4, 4, 64, 64))
SCHEDULE = fewstep.schedules.VPDiscrete(
    fewstep.schedules.betas("scaled_linear", 1000, 0.00085, 0.012)
)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

# Our solver, and the class and options of diffusers that do the same.
PAIRS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "dpmpp-2m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}),
    "dpmpp-3m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
    "unipc-2": (diffusers.UniPCMultistepScheduler, {"solver_order": 2}),
    "unipc-3": (diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
    "deis-3": (diffusers.DEISMultistepScheduler, {"solver_order": 3}),
}


def ours(name: str, x: torch.Tensor, out: torch.Tensor, exact: bool) -> Callable[[], float]:
    """Time a whole run by single steps through `advance`; returns microseconds per step."""
    grid = fewstep.grid(SCHEDULE, STEPS, "karras")
    table = build(name, grid)
    predict = (lambda x, node: out) if exact else denoiser(lambda x, label: out, SCHEDULE)

    def run() -> float:
        state = initial(table, x)
        begin = time.perf_counter_ns()
        for _ in range(STEPS):
            state = advance(state, predict, table)
        return (time.perf_counter_ns() - begin) / 1e3 / STEPS

    return run


def scheduled(scheduler: Any, x: torch.Tensor, out: torch.Tensor) -> Callable[[], float]:
    """The same through a scheduler's `step`, begin index set, set_timesteps excluded."""

    def run() -> float:
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        times, sample = scheduler.timesteps, x
        begin = time.perf_counter_ns()
        for t in times:
            sample = scheduler.step(out, t, sample, return_dict=False)[0]
        return (time.perf_counter_ns() - begin) / 1e3 / STEPS

    return run


def compile_cost(name: str) -> Callable[[], float]:
    """Microseconds to place the grid and build a 20-step table, ready to run."""

    def run() -> float:
        begin = time.perf_counter_ns()
        build(name, fewstep.grid(SCHEDULE, STEPS, "karras"))
        return (time.perf_counter_ns() - begin) / 1e3

    return run


def medians(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of each contender, taken in turns."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    return {name: statistics.median(values) for name, values in times.items()}


def table(repeats: int) -> str:
    """The report, as Markdown."""
    lines = [
        "# Cost of a step",
        "",
        "The host's time for one step of a 20-step run, in microseconds: medians of "
        f"{repeats} interleaved runs, one thread, float32, a network that returns a constant. "
        "`advance` takes a denoiser that returns x0 or converts an eps output, and "
        "`TableauScheduler` is in the place of the class of diffusers, converting too; the ratio "
        "is of those two. A large network hides all of this; it matters for small and distilled "
        "networks, captured models and servers.",
        "",
        f"- {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {date.today()}",
        f"- `python benchmarks/step_cost.py --repeats {repeats}`",
        "",
    ]
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        x, out = (torch.randn(shape, generator=generator) for _ in range(2))
        label = "x".join(map(str, shape))
        lines += [
            f"## {label}",
            "",
            "| solver | advance, x0 | advance, eps | TableauScheduler | diffusers | ratio |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name in PAIRS:
            kind, options = PAIRS[name]
            theirs = kind(**BETAS, **options)
            contenders = {
                "x0": ours(name, x, out, True),
                "eps": ours(name, x, out, False),
                "scheduler": scheduled(fewstep.TableauScheduler.from_config(theirs.config), x, out),
                "diffusers": scheduled(theirs, x, out),
            }
            got = medians(contenders, repeats)
            columns = [f"{got[each]:.1f}" for each in contenders]
            ratio = f"{got['diffusers'] / got['scheduler']:.1f}"
            lines.append(f"| {' | '.join([name, *columns, ratio])} |")
        lines.append("")
    lines += ["## Compiling a 20-step table", "", "| solver | microseconds |", "| --- | ---: |"]
    cost = medians({name: compile_cost(name) for name in PAIRS}, repeats)
    lines += [f"| {name} | {value:.0f} |" for name, value in cost.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the report, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        report = table(arguments.repeats)
    print(report)
    if arguments.out:
        arguments.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
