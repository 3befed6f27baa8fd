"""What a search looks like: every evaluation, the best so far, how well the predictor tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau

from ...eval.report import Picture, Section, Table, markdown, page, save_figure
from ...eval.report.plots import COLOURS, GREY
from ...storage import write_atomically
from ..schedule import SolverSchedule, Update
from .archive import Entry
from .config import SearchConfig

# Kinds of origins, in the order of their colours; all else is a published solver.
ORIGINS = ("drawn", "mutated", "crossed", "advised")
PUBLISHED = "published"
# Scores above this many times the median are drawn there.
SHOWN = 2.0
BEST = 5
STEPS = [
    "steps: x or e for x0 or eps, the order, s and how far back a singlestep rule starts, c for a "
    "corrector that reuses the output, C for one that asks again",
]
TAU = [
    "tau: Kendall's rank correlation with the truth; before: of all that was known then, each "
    "predicted by what had not seen it; here: of what was advised",
]


def kind_of(entry: Entry) -> str:
    """Where a schedule came from, without the details of published ones."""
    return entry.proposal.origin if entry.proposal.origin in ORIGINS else PUBLISHED


def course(entries: Sequence[Entry]) -> Figure:
    """All scores in the order of their evaluation with the best so far, and Kendall's tau."""
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([each.verdict.score for each in entries])
    finite = scores[np.isfinite(scores)]
    top = SHOWN * float(np.median(finite)) if len(finite) else 1.0
    places = np.arange(1, len(scores) + 1)
    kinds = np.array([kind_of(each) for each in entries])
    for colour, kind in zip(COLOURS, (PUBLISHED, *ORIGINS), strict=False):
        here = kinds == kind
        if here.any():
            axes.plot(
                places[here], np.minimum(scores[here], top), "o", ms=4, color=colour, label=kind
            )
    best = np.minimum(np.minimum.accumulate(scores), top)
    axes.plot(places, best, color="black", lw=1.4, label="best so far")
    axes.set(xlabel="schedules evaluated", ylabel="score (less is better)")
    if len(finite) and finite.min() > 0:
        axes.set_yscale("log")
    taus = [(k, e.proposal.tau) for k, e in zip(places, entries, strict=True)
            if e.proposal.tau is not None]  # fmt: skip
    if taus:
        other = axes.twinx()
        other.plot(*zip(*taus, strict=True), color=GREY, lw=1, ls=":", label="tau")
        other.set(ylabel="Kendall's tau of the predictor (dotted)", ylim=(-0.1, 1))
    figure.legend(loc="outside upper center", ncols=len(ORIGINS) + 3, fontsize=8)
    return figure


def stages(entries: Sequence[Entry]) -> Table:
    """How each batch that a predictor advised turned out."""
    groups: dict[tuple[int, int], list[Entry]] = {}
    for each in entries:
        if each.proposal.predicted is not None:
            groups.setdefault((each.proposal.stage, each.proposal.rank), []).append(each)
    rows = []
    for (stage, rank), group in groups.items():
        truth = [each.verdict.score for each in group]
        guess = [each.proposal.predicted for each in group]
        own = kendalltau(guess, truth).statistic if len({*truth}) > 1 else math.nan
        tau = group[0].proposal.tau
        rows.append(
            [
                f"{stage} ({rank})" if rank else f"{stage}",
                f"{len(group)}",
                "" if tau is None else f"{tau:.2f}",
                "" if math.isnan(own) else f"{own:.2f}",
                f"{min(truth):.4g}",
                f"{float(np.median(truth)):.4g}",
            ]
        )
    return Table(["stage", "evaluated", "tau before", "tau here", "best", "median"], rows)


def leaders(entries: Sequence[Entry]) -> Table:
    """The best schedules, in words."""
    ranked = sorted(entries, key=lambda each: each.verdict.score)[:BEST]
    rows = [
        [
            f"{each.verdict.score:.4g}",
            each.proposal.origin,
            ", ".join(f"{time:.4g}" for time in each.proposal.schedule.times),
            " ".join(spelt(each.proposal.schedule)),
        ]
        for each in ranked
    ]
    return Table(["score", "origin", "times", "steps"], rows)


def spelt(schedule: SolverSchedule) -> list[str]:
    """Each step in short: prediction, order, singlestep start, corrector."""
    marks = {None: "", False: "c", True: "C"}
    return [
        f"{'e' if step.prediction == 'eps' else 'x'}{step.predictor.order}"
        f"{start_of(step.predictor)}{marks[None if step.corrector is None else step.again]}"
        for step in schedule.steps
    ]


def start_of(update: Update) -> str:
    """How far back a singlestep rule starts."""
    return f"s{update.start}" if update.start else ""


def write_report(
    config: SearchConfig, nfe: int, entries: Sequence[Entry], folder: Path
) -> Path | None:
    """Write search-NFE.html and .md with the picture beside; None before the first evaluation."""
    if not entries:
        return None
    name = f"search-{nfe:03d}"
    save_figure(course(entries), folder / f"{name}.png")
    seconds = sum(each.verdict.seconds for each in entries)
    best = min(each.verdict.score for each in entries)
    facts = [
        f"{len(entries)} of {config.evaluations} schedules evaluated, {seconds:.0f} seconds of "
        f"processors; best score {best:.4g}",
        f"strategy: {config.strategy}; score: "
        + " + ".join(f"{m.weight:g} {m.kind}" for m in config.measures)
        + f" of {config.samples} samples",
    ]
    picture = Picture(f"{name}.png", f"The search at NFE {nfe}")
    sections = [
        Section("The course", (facts, picture)),
        Section("The best", (leaders(entries), STEPS)),
    ]
    if any(each.proposal.predicted is not None for each in entries):
        sections.append(Section("The predictor", (stages(entries), TAU)))
    title = f"Search for a sampler of {nfe} evaluations"
    write_atomically(folder / f"{name}.md", markdown(title, sections))
    write_atomically(folder / f"{name}.html", page(title, sections, folder))
    return folder / f"{name}.html"
