"""Plots of a benchmark: quality against NFE, and what the samples look like."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .bench import Result, Run
from .images import quantise, tile
from .store import write_atomically

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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    write_atomically(path, buffer.getvalue())


def curves(run: Run) -> dict[str, list[Result]]:
    """The results of each curve, by rising NFE."""
    found: dict[str, list[Result]] = {}
    for result in run.results:
        found.setdefault(result.cell.curve, []).append(result)
    return {name: sorted(rs, key=lambda r: r.cell.table.nfe) for name, rs in found.items()}


def against_nfe(run: Run, quantity: str, label: str, floors: Sequence[tuple[str, float]]) -> Figure:
    """One quantity of every solver against NFE, log-log; `floors` are dashed lines with a name.

    A solver that diverges leaves the plot at the top, ten times above the worst of the first one.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, results) in enumerate(curves(run).items()):
        axes.plot(
            [r.cell.table.nfe for r in results],
            [getattr(r, quantity) for r in results],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linestyle="-" if i < len(COLOURS) else "--",
            label=name,
            **STYLE,
        )
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image (NFE)", ylabel=label)
    for name, value in floors:
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
    first = next(iter(curves(run).values()))
    ceiling = 10 * max(getattr(result, quantity) for result in first)
    axes.set_ylim(top=min(axes.get_ylim()[1], ceiling))
    axes.xaxis.set_major_locator(FixedLocator(sorted({r.cell.nfe for r in run.results})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def tidy(axes: Axes) -> None:
    """Light grid, no box, plain numbers on a log axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
    axes.grid(True, which="minor", axis="y", color="#F0F0F0", linewidth=0.6)
    axes.set_axisbelow(True)
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(FuncFormatter(sparse_number))
    axes.tick_params(which="minor", labelsize=7, colors=GREY)


def sparse_number(value: float, _: int) -> str:
    """A tick label at 1, 2 and 5 times a power of ten only."""
    lead = value / 10 ** np.floor(np.log10(value))
    return f"{value:.10g}" if min(abs(lead - k) for k in (1, 2, 5, 10)) < 1e-6 else ""


def overview(run: Run, count: int = 10) -> Figure:
    """The same `count` samples from every cell: a row for each solver, a column for each NFE.

    The last column is the reference, the same in every row.
    """
    table = curves(run)
    asked = sorted({r.cell.nfe for r in run.results})
    size = (1.75 * (len(asked) + 1) + 1.2, 0.82 * len(table) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(table), len(asked) + 1, squeeze=False)
    for row, (name, results) in zip(axes, table.items(), strict=True):
        by_nfe = {r.cell.nfe: r.pixels for r in results}
        sheets = [*(by_nfe.get(nfe) for nfe in asked), quantise(run.reference.samples)]
        for place, sheet in zip(row, sheets, strict=True):
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if sheet is not None:
                picture = tile(sheet[:count], columns=5, gap=1, paper=255)
                place.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for place, title in zip(axes[0], [*(f"NFE {n}" for n in asked), "reference"], strict=True):
        place.set_title(title, fontsize=9)
    return figure
