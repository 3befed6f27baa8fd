"""A table as parameters of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...samplers import Tableau, TimeMap
from ...samplers.fit import Free, changes, is_free, plain
from ...schedules import Grid
from ...schedules.base import Float
from ...schedules.grid import Node
from .gauss_newton import What

# Of the gap between two nodes: the step of the differences by which a solver is derived.
STEP = 1e-5


class Run(NamedTuple):
    """A table with gradients: with the factor of its noise, and nodes that carry them, too."""

    table: Tableau
    start: Tensor
    time_map: TimeMap | None


class LearnedTable(nn.Module):
    """The numbers of a solver at the current nodes, plus what was learned.

        row[n] = base(times)[n] + changes[n] @ weights[n],   label[n] = label(times[n]) + labels[n]

    `base` is a solver of the registry, built again as the nodes move, in x0 ("base-residual", the
    GAS form of Oganov et al. 2025, "Generalized Adversarial Solver"). Nothing learned yet is
    `table` itself, whatever it is: its own distance to `base` is kept. The gaps between nodes (and
    before the first) are shares of all time, changed by factors exp(times): no two ever cross, and
    a table that begins at the noisiest time goes on to. Only what `what` names is a parameter; all
    are float64. Rows that are not `free` (see `fit`) keep constant x0 exact.

    Raises ValueError for a table or a base that is stochastic or has stages, and for a table
    with a bias or without a schedule.
    """

    def __init__(
        self,
        table: Tableau,
        what: Sequence[What] = ("weights", "times"),
        *,
        base: str = "unipc-3",
        free: Free = "inner",
    ) -> None:
        super().__init__()
        if table.stochastic or table.grid.stage.any():
            raise ValueError(f"{table!r}: only deterministic tables without stages are learned")
        if table.bias.any():
            raise ValueError(f"{table!r} has a bias, which would not follow nodes that are learned")
        self.law = table.grid.require_schedule()
        self.first, self.base = table.in_basis("x0").numeric(), base
        n = self.first.grid.nfe
        free_rows = [changes(row, is_free(row, n, free)) for row in range(n)]
        sizes = {
            "weights": sum(each.shape[1] for each in free_rows),
            "times": n + 1,
            "labels": n,
        }
        for name, size in sizes.items():
            value = torch.zeros(size if name in what else 0, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))
        self.weights: nn.Parameter
        self.times: nn.Parameter
        self.labels: nn.Parameter
        span = spread(free_rows, n)
        self.register_buffer("span", span, persistent=False)
        self.span: Tensor
        own = self.columns(self.first.grid.time)
        self.kept = packed(self.first) - own

    def columns(self, time: Float) -> Float:
        """All numbers of the base solver at these times: float64 [N + N N + 3 N]."""
        return packed(plain(self.base, Grid.from_times(self.law, time)))

    def nodes(self) -> Tensor:
        """The times of the nodes: float64 [N + 1]."""
        time = torch.tensor(self.first.grid.time, device=self.span.device)
        if not self.times.numel():
            return time
        end = float(time[-1])
        gaps = -torch.diff(time, prepend=time.new_tensor([self.law.t_max]))
        # Gaps of zero stay zero.
        shares = torch.softmax(gaps.clamp(min=0).log() + self.times, 0)
        after = shares.flip(0).cumsum(0).flip(0)[1:]
        return torch.cat([end + (self.law.t_max - end) * after, time[-1:]])

    def numbers(self) -> tuple[Float, Tensor]:
        """The times of the nodes, and `columns` there with what was learned, with its gradient."""
        time = self.nodes()
        plain = np.asarray(time.detach().cpu())
        found = Derived.apply(time, self.columns) + torch.as_tensor(self.kept, device=time.device)
        if self.weights.numel():
            found = found + self.span @ self.weights
        if self.labels.numel():
            found = torch.cat(
                [found[: -len(self.labels)], found[-len(self.labels) :] + self.labels]
            )
        return plain, found

    def forward(self) -> Run:
        """The table of this moment."""
        time, found = self.numbers()
        n = self.first.grid.nfe
        carry, weights, alpha, sigma, label = found.split([n, n * n, n, n, n])
        grid = self.grid(time, label)
        table = Tableau(grid, carry, weights.reshape(n, n), name=self.first.name)
        moving = any(each.numel() for each in (self.times, self.labels))

        def time_map(x: Tensor, node: Node) -> Node:
            k = node.index
            levels: dict[str, Any] = {"alpha": alpha[k], "sigma": sigma[k], "label": label[k]}
            return replace(node, lam=alpha[k].log() - sigma[k].log(), **levels)

        return Run(table, sigma[0], time_map if moving else None)

    def grid(self, time: Float, label: Tensor) -> Grid:
        """The nodes in numbers."""
        grid = Grid.from_times(self.law, time)
        labels = np.append(label.detach().cpu().numpy(), grid.label[-1])
        return replace(grid, label=labels)

    @torch.no_grad()
    def table(self) -> Tableau:
        """The table of this moment as plain numbers."""
        return self().table.numeric().renamed(self.first.name, **self.first.meta)


def packed(table: Tableau) -> Float:
    """Carry, weights, and the levels and labels of nodes, as one vector."""
    grid = table.grid
    levels = (grid.alpha[:-1], grid.sigma[:-1], grid.label[:-1])
    return np.concatenate([table.carry, table.weights.reshape(-1), *levels])


def spread(spans: Sequence[Tensor], n: int) -> Tensor:
    """The changes of all rows as one matrix from their parameters to `packed` numbers."""
    total = sum(each.shape[1] for each in spans)
    found = torch.zeros(n + n * n + 3 * n, total, dtype=torch.float64)
    column = 0
    for row, span in enumerate(spans):
        columns = slice(column, column + span.shape[1])
        found[row, columns] = span[0]
        found[n + row * n : n + row * n + row + 1, columns] = span[1:]
        column += span.shape[1]
    return found


class Derived(torch.autograd.Function):
    """A function of numpy of the times [N + 1], differentiated by differences."""

    @staticmethod
    def forward(ctx: Any, time: Tensor, function: Callable[[Float], Float]) -> Tensor:
        """function(time); the last time does not move."""
        ctx.save_for_backward(time)
        ctx.function = function
        return torch.as_tensor(function(np.asarray(time.detach().cpu())), device=time.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of the times."""
        (time,) = ctx.saved_tensors
        (grad,) = grads
        plain = np.asarray(time.cpu())
        found = [slope(ctx.function, plain, k) @ grad.cpu().numpy() for k in range(len(plain) - 1)]
        return torch.tensor([*found, 0.0], device=time.device, dtype=time.dtype), None


def slope(function: Callable[[Float], Float], time: Float, k: int) -> Float:
    """The derivative with respect to a time; from below where it cannot rise."""
    step = STEP * float(time[k] - time[k + 1])
    higher, lower = time.copy(), time.copy()
    lower[k] -= step
    if k:
        step = min(step, STEP * float(time[k - 1] - time[k]))
        lower[k], higher[k] = time[k] - step, time[k] + step
    return (function(higher) - function(lower)) / (higher[k] - lower[k])
