"""Plots of a benchmark: quality against NFE and against time, and what the samples look like."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from ...storage import write_atomically
from ..images import tile
from .points import Point, pareto

# Okabe and Ito's palette, told apart with every kind of colour vision; the marker says it again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[str, Any] = {
    "linewidth": 1.6,
    "markersize": 6,
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
}
GREY = "#666666"
# Bands show that many standard errors to either side.
BAND = 2


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    write_atomically(path, buffer.getvalue())


def curves(found: Sequence[Point]) -> dict[str, list[Point]]:
    """The points of each curve, by rising NFE."""
    by_name: dict[str, list[Point]] = {}
    for point in found:
        by_name.setdefault(point.curve, []).append(point)
    return {name: sorted(each, key=lambda p: p.nfe) for name, each in by_name.items()}


def against_nfe(
    found: Sequence[Point],
    label: str,
    floors: Sequence[tuple[str, float]] = (),
    published: Sequence[Mapping[str, Mapping[int, float]]] = (),
    title: str = "",
) -> Figure:
    """A quantity of every curve against NFE with bands of two standard errors, log-log.

    `floors` are dashed lines with a name, `published` values are hollow marks. A solver that
    diverges leaves the plot at the top, ten times above the worst of the first one. Quantities with
    values below zero have an axis that is linear around it, as far as twice the least error goes.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    positive = all(point.value > 0 for point in found)
    for i, (name, line) in enumerate(curves(found).items()):
        look = appearance(i)
        axes.plot([p.nfe for p in line], [p.value for p in line], label=name, **look, **STYLE)
        if all(p.error is not None for p in line):
            low, high = zip(*(band(p, positive) for p in line), strict=True)
            nodes = [p.nfe for p in line]
            axes.fill_between(nodes, low, high, color=look["color"], alpha=0.09, linewidth=0)
        theirs = [pair for source in published for pair in source.get(name, {}).items()]
        axes.plot(
            [nfe for nfe, _ in theirs],
            [value for _, value in theirs],
            linestyle="none",
            marker=look["marker"],
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=look["color"],
        )
    axes.set(xscale="log", xlabel="network evaluations per image (NFE)", ylabel=label)
    axes.set_title(title, loc="left", fontsize=10)
    if positive:
        axes.set_yscale("log")
    else:
        errors = [point.error for point in found if point.error]
        axes.set_yscale("symlog", linthresh=BAND * min(errors, default=1.0))
        axes.set_ylim(bottom=min(p.value - BAND * (p.error or 0) for p in found))
    for name, value in floors:
        floor(axes, name, value)
    first = next(iter(curves(found).values()))
    ceiling = 10 * max(point.value for point in first)
    if ceiling > 0:
        axes.set_ylim(top=min(axes.get_ylim()[1], ceiling))
    axes.xaxis.set_major_locator(FixedLocator(sorted({p.nfe_allowed for p in found})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    tidy(axes, positive)
    axes.legend(frameon=False, fontsize=9)
    return figure


def against_seconds(
    found: Sequence[Point], label: str, lower_is_better: bool = True, title: str = ""
) -> Figure:
    """A quantity of every curve against the time per image, with the Pareto front, log-log.

    The number at a point is its NFE, bars are two standard errors.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    positive = all(point.value > 0 for point in found)
    for i, (name, line) in enumerate(curves(found).items()):
        line = sorted(line, key=lambda p: p.seconds)
        look = appearance(i) | {"linestyle": "none"}
        times = [1000 * p.seconds for p in line]
        axes.plot(times, [p.value for p in line], label=name, **look, **STYLE)
        for time, point in zip(times, line, strict=True):
            if point.error is not None:
                ends = band(point, positive)
                axes.plot([time, time], ends, color=look["color"], linewidth=0.8, alpha=0.5)
            axes.annotate(
                f"{point.nfe}",
                (time, point.value),
                textcoords="offset points",
                xytext=(5, 3),
                fontsize=7,
                color=GREY,
            )
    front = pareto(found, lower_is_better)
    axes.plot(
        [1000 * p.seconds for p in front],
        [p.value for p in front],
        color=GREY,
        linewidth=1,
        linestyle=(0, (4, 3)),
        drawstyle="steps-post",
        zorder=0,
        label="Pareto front",
    )
    axes.set(xscale="log", xlabel="milliseconds per image", ylabel=label)
    axes.set_title(title, loc="left", fontsize=10)
    if positive:
        axes.set_yscale("log")
    tidy(axes, positive)
    plain(axes.xaxis)
    axes.legend(frameon=False, fontsize=9)
    return figure


def band(point: Point, positive: bool) -> tuple[float, float]:
    """Two standard errors to either side; a log axis has no place for what reaches below zero."""
    spread = BAND * (point.error or 0.0)
    least = 0.02 * point.value if positive else -np.inf
    return max(point.value - spread, least), point.value + spread


def appearance(i: int) -> dict[str, Any]:
    """Colour, marker and line of the i-th curve."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": "-" if i < len(COLOURS) else "--",
    }


def floor(axes: Axes, name: str, value: float) -> None:
    """A dashed line with a name."""
    axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        name,
        (0.995, value),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        xytext=(0, 3),
        ha="right",
        fontsize=8,
        color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
    )


def tidy(axes: Axes, log: bool) -> None:
    """Light grid, no box, plain numbers on a log axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
    axes.grid(True, which="minor", axis="y", color="#F0F0F0", linewidth=0.6)
    axes.set_axisbelow(True)
    if log:
        plain(axes.yaxis)


def plain(axis: Axis) -> None:
    """Plain numbers on a log axis: some, over a decade or less all, over more 1, 2, 5 and so on."""
    low, high = axis.get_view_interval()
    if high < 3 * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
        return
    leads = (1, 2, 5, 10) if high > 10 * low else range(1, 11)

    def number(value: float, _: int) -> str:
        lead = value / 10 ** np.floor(np.log10(value))
        return f"{value:.10g}" if min(abs(lead - k) for k in leads) < 1e-6 else ""

    for formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        formatter(FuncFormatter(number))
    axis.set_tick_params(which="minor", labelsize=7, colors=GREY)


def overview(sheets: Mapping[str, Mapping[str, Tensor]], count: int = 10) -> Figure:
    """The same `count` samples from every cell: `sheets[row][column]`, uint8 [N, C, H, W]."""
    columns = list(dict.fromkeys(column for row in sheets.values() for column in row))
    size = (1.75 * len(columns) + 1.2, 0.82 * len(sheets) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(sheets), len(columns), squeeze=False)
    for line, (name, row) in zip(axes, sheets.items(), strict=True):
        for place, column in zip(line, columns, strict=True):
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if column in row and len(row[column]):
                picture = tile(row[column][:count], columns=5, gap=1, paper=255)
                place.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for place, column in zip(axes[0], columns, strict=True):
        place.set_title(column, fontsize=9)
    return figure
