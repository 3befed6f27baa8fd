"""What measuring costs beside sampling: the bundled model with all of its metrics, and without.

python benchmarks/evaluation_cost.py [--images 5000] [--nfe 10] [--out docs/evaluation-cost.md]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from fewstep import build, grid
from fewstep.eval.bench.record import outputs_in
from fewstep.eval.extractors import extractor
from fewstep.eval.job import Job
from fewstep.eval.models import Draw, label_rule, load_model, pick_device
from fewstep.eval.score import instruments, score
from fewstep.eval.shards import collect, run_job
from fewstep.eval.sources import open_images
from fewstep.eval.statistics import collect_statistics
from fewstep.storage import environment

METRICS = ("frechet", "kernel", "score", "neighbours")


def measured(images: int, nfe: int, rounds: int, device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of every round: sampling alone, sampling with features, and the metrics."""
    model, features = load_model("mnist", device), extractor("mnist-classifier", device)
    known = collect_statistics(open_images("mnist"), features)
    seeds = range(images)
    draw = Draw(seeds, label_rule("balanced", model.classes, model.shape, seeds, "cpu"))
    bare = Job(model, build("unipc-3", grid(model.schedule, nfe, "uniform")), draw)
    probe = features(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    found = []
    for _ in range(rounds):
        times = []
        metrics = instruments(METRICS, known, probe, device)
        for job in (bare, replace(bare, extractors=(features,))):
            folder = Path(tempfile.mkdtemp())
            start = time.perf_counter()
            run_job(job, folder)
            times.append(time.perf_counter() - start)
            arrays = collect(job, folder)
            shutil.rmtree(folder)
        start = time.perf_counter()
        score(outputs_in(arrays, features.name), metrics)
        found.append((*times, time.perf_counter() - start))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    rows = measured(options.images, options.nfe, options.rounds, device)
    env = environment(device)
    lines = [
        "# What measuring costs",
        "",
        "Written by `python benchmarks/evaluation_cost.py`: the bundled digit model, UniPC-3 at "
        f"{options.nfe} steps, {options.images} images, the metrics {', '.join(METRICS)} in the "
        "features of the bundled classifier against 10,000 digits, seeds from 0. Features are "
        "extracted while the next batch is sampled.",
        "",
        "| round | sampling | with features | metrics | measuring adds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for i, (alone, both, metrics) in enumerate(rows):
        added = (both + metrics) / alone - 1
        lines.append(f"| {i} | {alone:.1f} s | {both:.1f} s | {metrics:.1f} s | {added:.1%} |")
    lines += [
        "",
        f"Machine: {env['device']}, {env['threads']} threads, Python {env['python']}, "
        f"torch {env['torch']}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
