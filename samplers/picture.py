"""A tableau as a picture: the heat map of its triangle."""

from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from .tableau import Tableau

# Up to this many rows, every cell carries its number.
LABELLED = 14


def heatmap(table: Tableau) -> Figure:
    """Draw carry, weights, and noise and bias if any: rows are steps, columns outputs.

    Colour is symmetric around zero and logarithmic beyond a hundredth of the largest entry.
    """
    blocks = [("carry", table.carry[:, None], 1), (f"weights on {table.basis}", table.weights, 0)]
    if table.noise.any():
        blocks.append(("noise", table.noise, 0))
    if table.bias.any():
        # Of an image, the mean.
        blocks.append(("bias", table.bias.reshape(len(table.bias), -1).mean(1)[:, None], 1))
    n = table.grid.nfe
    side = float(np.clip(0.55 * n, 3.2, 9.0))
    widths = [1.0 if narrow else max(n, 2) for *_, narrow in blocks]
    figure = Figure(
        figsize=(side * (sum(widths) + 2) / max(n, 2), side + 1.2), layout="constrained"
    )
    axes = figure.subplots(1, len(blocks), width_ratios=widths, sharey=True, squeeze=False)[0]
    top = max(float(np.abs(values).max()) for _, values, _ in blocks)
    norm = SymLogNorm(linthresh=top / 100, vmin=-top, vmax=top)
    image = ScalarMappable(norm, "RdBu_r")
    for axis, (title, values, narrow) in zip(axes, blocks, strict=True):
        # Entries that can never exist stay blank; zeros of the triangle are white.
        shown = values if narrow else np.where(np.tri(n, dtype=bool), values, np.nan)
        axis.imshow(shown, cmap="RdBu_r", norm=norm, aspect="auto")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([] if narrow else range(0, n, max(1, n // 10)))
        if n <= LABELLED:
            for (row, column), value in np.ndenumerate(shown):
                if np.isfinite(value) and value != 0:
                    dark = abs(norm(value) - 0.5) > 0.32
                    axis.text(
                        column,
                        row,
                        f"{value:.2g}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
    axes[0].set_yticks(range(0, n, max(1, n // 20)))
    axes[0].set_ylabel("step")
    axes[1].set_xlabel("output of node")
    figure.colorbar(image, ax=axes, shrink=0.7)
    figure.suptitle(f"{table.name}, {table.nfe} network evaluations", fontsize=11)
    return figure
