"""Cost and agreement of the metrics, beside those of torchmetrics, in one run.

    python benchmarks/metrics_cost.py [--out docs/metrics-cost.md]

Both take the same features, as Inception's pool3 has them: no network is timed. Times are medians
over interleaved repetitions on one thread, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from fewstep.eval.metrics import FrechetDistance, InceptionScore, KernelDistance, moments
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TheirScore
from torchmetrics.image.kid import KernelInceptionDistance

BATCH = 64
CLASSES = 1008


class Features(nn.Module):
    """A network that gives what it is given, of `num_features` dimensions."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """The identity."""
        return x


def features(count: int, width: int, seed: int) -> Tensor:
    """Correlated features that are never negative, float32, as after a rectifier and a mean."""
    mixing = torch.Generator().manual_seed(0)
    decay = torch.arange(1, width + 1) ** -0.5
    mix = torch.randn(width, width, generator=mixing) * decay[:, None] / width**0.5
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (x @ mix * 3 + 0.1 * torch.randn(x.shape, generator=mixing)).abs()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what came of it."""
    begin = time.perf_counter_ns()
    value = run()
    return (time.perf_counter_ns() - begin) / 1e6, value


def compared(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, Any]]:
    """Median milliseconds and the last value of each contender, taken in turns."""
    seen = [{name: timed(run) for name, run in runs.items()} for _ in range(repeats)]
    return {
        name: (statistics.median(each[name][0] for each in seen), seen[-1][name][1])
        for name in runs
    }


def fresh(metric: Any) -> Callable[[], float]:
    """The metric's value, computed and not remembered."""

    def run() -> float:
        metric._computed = None
        value = metric.compute()
        return float(value[0] if isinstance(value, tuple) else value)

    return run


def row(name: str, ours: tuple[float, Any], theirs: tuple[float, Any]) -> str:
    """A line of the table: times, their ratio, values and how far they are apart."""
    cells = [name, f"{ours[0]:.3g}", f"{theirs[0]:.3g}", f"{theirs[0] / ours[0]:.1f}"]
    if ours[1] is None:
        return f"| {' | '.join([*cells, '', '', ''])} |"
    apart = abs(ours[1] - theirs[1]) / abs(theirs[1])
    return f"| {' | '.join([*cells, f'{ours[1]:.8g}', f'{theirs[1]:.8g}', f'{apart:.1e}'])} |"


def updates(
    metrics: dict[str, Any], call: Callable[[Any, Tensor], None], x: Tensor, repeats: int
) -> dict[str, tuple[float, Any]]:
    """Cost of one update with a batch of 64."""
    parts = x.split(BATCH)
    batches = {name: iter(parts * (repeats // len(parts) + 2)) for name in metrics}
    runs = {
        name: lambda m=metric, b=batches[name]: call(m, next(b)) for name, metric in metrics.items()
    }
    compared(runs, 1)
    return compared(runs, repeats)


def frechet(count: int, width: int, repeats: int) -> list[str]:
    """Lines on the Frechet distance."""
    real, fake = features(count, width, 1), features(count, width, 2) * 1.05
    reference = moments(real)
    assert reference.factor is not None

    def theirs() -> FrechetInceptionDistance:
        return FrechetInceptionDistance(feature=Features(width))

    def call(metric: Any, x: Tensor) -> None:
        metric.update(x, **({} if isinstance(metric, FrechetDistance) else {"real": False}))

    contenders = {
        "1": FrechetDistance(reference, blocks=1),
        "20": FrechetDistance(reference, blocks=20),
        "theirs": theirs(),
    }
    costs = updates(contenders, call, fake, repeats)
    lines = [
        row(
            f"Frechet distance, update, blocks={blocks}",
            cost,
            costs["theirs"],
        )
        for blocks, cost in costs.items()
        if blocks != "theirs"
    ]
    contenders = {
        "1": FrechetDistance(reference, blocks=1),
        "20": FrechetDistance(reference, blocks=20),
        "theirs": theirs(),
    }
    for part in fake.split(BATCH):
        for metric in contenders.values():
            call(metric, part)
    for part in real.split(BATCH):
        contenders["theirs"].update(part, real=True)
    runs = {name: fresh(metric) for name, metric in contenders.items()}
    compared(runs, 1)
    got = compared(runs, 5)
    return lines + [
        row(f"Frechet distance, compute, blocks={blocks}", got[blocks], got["theirs"])
        for blocks in ("1", "20")
    ]


def kernel(count: int, width: int, repeats: int) -> list[str]:
    """Lines on the kernel distance, of 10 subsets of 1,000."""
    options: dict[str, Any] = {"subsets": 10, "subset_size": 1000}
    real, fake = features(count, width, 1), features(count, width, 2) * 1.05
    ours = KernelDistance(real, **options)
    theirs = KernelInceptionDistance(feature=Features(width), **options)
    theirs.update(real, real=True)

    def call(metric: Any, x: Tensor) -> None:
        metric.update(x, **({} if metric is ours else {"real": False}))

    contenders = {"ours": ours, "theirs": theirs}
    costs = updates(contenders, call, fake, repeats)
    for metric in contenders.values():
        metric.reset()
        call(metric, fake)
    theirs.update(real, real=True)
    got = compared({name: fresh(metric) for name, metric in contenders.items()}, 3)
    return [
        row("kernel distance, update", costs["ours"], costs["theirs"]),
        row("kernel distance, compute, 10 subsets", got["ours"], got["theirs"]),
    ]


def score(count: int, repeats: int) -> list[str]:
    """Lines on the Inception score."""
    logits = 4 * torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(3))
    contenders = {
        "ours": InceptionScore(CLASSES),
        "theirs": TheirScore(feature=Features(CLASSES)),
    }
    costs = updates(contenders, lambda metric, x: metric.update(x), logits, repeats)
    for metric in contenders.values():
        metric.reset()
        for part in logits.tensor_split(20):
            metric.update(part)
    got = compared({name: fresh(metric) for name, metric in contenders.items()}, 3)
    return [
        row("Inception score, update", costs["ours"], costs["theirs"]),
        row("Inception score, compute", got["ours"], got["theirs"]),
    ]


def table(count: int, width: int, repeats: int) -> str:
    """The report, as Markdown."""
    lines = [
        "# Cost of the metrics",
        "",
        f"Milliseconds on {count:,} samples of {width:,} features ({CLASSES:,} logits for the "
        f"Inception score) in float32, and what came out: `update` with {BATCH} samples, median "
        f"of {repeats}, and `compute`, median of 3, in turns with torchmetrics'. The factor of the "
        "reference's covariance is computed before, as it is kept with the statistics; "
        "torchmetrics has none. Its kernel distance and Inception score draw subsets and orders "
        "anew at every call, so that values differ by more than rounding; it adds up in float32 "
        "there, and in float64 for the Frechet distance, as all of ours do.",
        "",
        f"- {platform.processor() or platform.machine()}, one thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchmetrics "
        f"{torchmetrics.__version__}, {date.today()}",
        f"- `python benchmarks/metrics_cost.py --count {count} --width {width} "
        f"--repeats {repeats}`",
        "",
        "| | fewstep | torchmetrics | ratio | fewstep's value | torchmetrics' | apart |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += frechet(count, width, repeats)
    lines += kernel(count, width, repeats)
    lines += score(count, repeats)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the report, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the Markdown here")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    # That a metric keeps all features.
    warnings.filterwarnings("ignore", message="Metric `", category=UserWarning)
    torch.set_num_threads(1)
    report = table(arguments.count, arguments.width, arguments.repeats)
    print(report)
    if arguments.out:
        arguments.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
