"""A table as a pipeline runs it: one line a step, each knowing the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..samplers import Tableau
from ..samplers.basis import affine
from ..samplers.relations import aligned, trailing
from ..samplers.sums import Coefficient, Pairs
from ..schedules.base import Float
from .reading import Reading


class Numbers(NamedTuple):
    """What a line multiplies with.

    The network is shown scale x, and x0 = a x + b out. Outputs are made as of_x x + of_out out; a
    line whose x0 is clipped first makes them of that, as clipped_x x + clipped_x0 x0. `residual` is
    the share of what was clipped that stays in the state. The rest is the sum of the line, its
    terms counted from the newest output (-1) and noise back; its bias is None in a table without.
    """

    scale: Coefficient
    a: Coefficient
    b: Coefficient
    of_x: Coefficient
    of_out: Coefficient
    clipped_x: Coefficient
    clipped_x0: Coefficient
    residual: Coefficient
    carry: Coefficient
    bias: Coefficient | None
    weights: Pairs
    noise: Pairs


# Numbers in front of the terms of the sums.
HEAD = len(Numbers._fields) - 2
BIAS = Numbers._fields.index("bias")


@dataclass(frozen=True, eq=False)
class Line:
    """One step of a run.

    `calls` says whether its output is used, `draws` whether the generator is asked and `adds`
    whether that noise is used; `inside` and `leads_inside` whether it starts and ends inside a step
    of two evaluations; `residual` whether what was clipped from x0 stays in the state; `biased`
    whether any line of the run has a bias. Lines behind
    need the newest `keep` and `keep_noise`, and `window` and `noise_window` are the most that any
    line of the run sums. `vector` holds `numbers` on the device, with all terms of the window.
    `home` makes the lines of this run.
    """

    index: int
    numbers: Numbers
    vector: Tensor = field(repr=False)
    calls: bool
    draws: bool
    adds: bool
    inside: bool
    leads_inside: bool
    residual: bool
    biased: bool
    keep: int
    keep_noise: int
    window: int
    noise_window: int
    next: Line | End = field(repr=False)
    home: Callable[[], tuple[Line, ...]] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # By its place in a run: it holds all lines behind it.
        return line_of, (self.home, self.index)

    def __deepcopy__(self, memo: dict[int, Any]) -> Line:
        return self

    def uniform(self) -> Numbers:
        """The numbers as tensors, all terms of the window: the same computation for every line."""
        values = self.vector.unbind()
        numbers = numbers_of(values, [True] * len(values), self.window)
        return numbers if self.biased else numbers._replace(bias=None)


@dataclass(frozen=True)
class End:
    """Behind the last line."""

    index: int


def line_of(home: Callable[[], tuple[Line, ...]], index: int) -> Line:
    """The line of that index in a run."""
    lines = home()
    return lines[index - lines[0].index]


def numbers_of(values: Sequence[Coefficient], live: Sequence[bool], window: int) -> Numbers:
    """The head, then `window` outputs and all else noises, of which those that are `live` stay.

    They are those of the newest, of the one before it, .., with their places counted from the end.
    """
    outputs, noises = range(HEAD, HEAD + window), range(HEAD + window, len(values))
    pairs = (
        tuple([(-1 - age, values[i]) for age, i in enumerate(part) if live[i]])
        for part in (outputs, noises)
    )
    return Numbers._make((*values[:HEAD], *pairs))


class Ages(NamedTuple):
    """A triangle by age: what each row takes of the newest column made, of the one before, ..

    `values` [N, window] and what trails the triangle; `made` [N] says which rows make a column,
    `keep` [N] how many of the newest columns rows behind need.
    """

    values: Float
    made: NDArray[np.bool_]
    keep: list[int]


def by_age(triangle: Float) -> Ages:
    """See `Ages`; columns that no row takes are not made."""
    n = len(triangle)
    made = np.asarray(somewhere(triangle).any(0))
    values = np.zeros_like(triangle)
    for row in range(n):
        columns = np.flatnonzero(made[: row + 1])[::-1]
        values[row, : len(columns)] = triangle[row, columns]
    taken = somewhere(values)
    used = np.where(taken.any(1), n - taken[:, ::-1].argmax(1), 0)
    keep = [0] * n
    for row in reversed(range(n - 1)):
        keep[row] = max(0, max(int(used[row + 1]), keep[row + 1]) - int(made[row + 1]))
    return Ages(values[:, : used.max()], made, keep)


def somewhere(triangle: Float) -> NDArray[np.bool_]:
    """Where a triangle is not zero in all of its trailing dimensions, [N, N]."""
    return np.asarray((triangle != 0).reshape(*triangle.shape[:2], -1).any(-1))


def program(
    table: Tableau,
    readings: Sequence[Reading],
    begin: int,
    *,
    clipped: bool,
    residual: bool,
    device: torch.device | str | None,
    home: Callable[[], tuple[Line, ...]],
) -> tuple[Line, ...]:
    """The rows of a table, for a run whose first row is the one of index `begin`.

    With m = p x + q x0 and x0 = a x + b out, m is (p + q a) x + q b out: up to a factor, which its
    column of the table takes, x + ratio out, or `out` itself where the table is in the network's
    own prediction. `residual`: what was clipped from x0 stays in the eps that DDIM of diffusers
    goes on with, times - sigma' alpha / sigma. Coefficients that are images are tensors on the
    device.
    """
    grid = table.grid
    p, q = affine(table.basis, grid.alpha[:-1], grid.sigma[:-1])
    scale, a, b = (np.array(values) for values in zip(*readings, strict=True))
    of_x, of_out = p + q * a, q * b
    # What cancels in p + q a is the network's own basis, up to rounding.
    native = np.abs(of_x) <= 1e-12 * (np.abs(p) + np.abs(q * a))
    unit = np.where(native, of_out, of_x)
    lost = -grid.sigma[1:] * grid.alpha[:-1] / grid.sigma[:-1] * residual
    ratio = of_out / unit
    head = (scale, a, b, np.where(native, 0.0, 1.0), ratio, p, q, lost, table.carry, table.bias)
    per_output = trailing(unit, table.weights.ndim - 2)
    outputs = by_age(table.weights if clipped else table.weights * per_output)
    noises = by_age(table.noise)
    window, noise_window = outputs.values.shape[1], noises.values.shape[1]
    columns = (*head, *outputs.values.swapaxes(0, 1), *noises.values.swapaxes(0, 1))
    vectors = device_rows(columns, device)
    # Floats where a column has such; by row.
    entries = tuple(
        zip(
            *(
                each.tolist() if each.ndim == 1 else [row[i] for row in vectors]
                for i, each in enumerate(columns)
            ),
            strict=True,
        )
    )
    live = np.array([(each != 0).reshape(grid.nfe, -1).any(1) for each in columns]).T.tolist()
    line: Line | End = End(begin + grid.nfe)
    lines = []
    for n in reversed(range(grid.nfe)):
        numbers = numbers_of(entries[n], live[n], window)
        if not live[n][BIAS]:
            numbers = numbers._replace(bias=None)
        adds = bool(noises.made[n])
        line = Line(
            index=begin + n,
            numbers=numbers,
            vector=vectors[n],
            calls=bool(outputs.made[n]),
            # As in diffusers every step draws, also one that has no use for it, and a stage inside
            # a step if it adds noise.
            draws=table.stochastic and (adds or not bool(grid.stage[n + 1])),
            adds=adds,
            inside=bool(grid.stage[n]),
            leads_inside=bool(grid.stage[n + 1]),
            residual=residual,
            biased=bool(table.bias.any()),
            keep=outputs.keep[n],
            keep_noise=noises.keep[n],
            window=window,
            noise_window=noise_window,
            next=line,
            home=home,
        )
        lines.append(line)
    return tuple(reversed(lines))


def device_rows(columns: Sequence[Float], device: torch.device | str | None) -> tuple[Tensor, ...]:
    """Row by row all columns, broadcast to one shape, on a device; float64 where it has such."""
    dims = max(column.ndim for column in columns)
    alike = np.broadcast_arrays(*(aligned(column, 1, dims - 1) for column in columns))
    dtype = torch.float32 if torch.device(device or "cpu").type == "mps" else torch.float64
    return torch.from_numpy(np.stack(alike, 1)).to(device=device, dtype=dtype).unbind()
