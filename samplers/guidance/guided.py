"""Denoisers made of others, in such a way that memories of all of them stay with the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...schedules.grid import Node
from ..recall import FRESH, STREAMS, Denoiser, Memory, recall_of, recalled, taken
from ..streams import salted


class Ask:
    """One evaluation of a guided denoiser: its state and node, and what is remembered.

    `ask(denoiser)` evaluates a part there, or at another state. `memory` is to be replaced, not
    changed: the state of the run before holds it, too.
    """

    def __init__(
        self, x: Tensor, node: Node, memory: Memory, own: tuple[Tensor, int] | None = None
    ) -> None:
        self.x, self.node, self.memory, self.own = x, node, memory, own

    def __call__(self, denoiser: Denoiser, x: Tensor | None = None) -> Tensor:
        """The x0 of a part."""
        x = self.x if x is None else x
        denoiser = denoiser if self.own is None else taken(denoiser, *self.own)
        x0, self.memory = recalled(denoiser, x, self.node, self.memory)
        return x0

    def part(self, denoiser: Denoiser, rows: Tensor) -> Tensor:
        """The x0 of some of the samples, with what is remembered of these.

        A network's labels, one for each sample of the batch, go with them.
        """
        denoiser = taken(denoiser, *rows_of(self.own, rows, len(self.x)))
        if recall_of(denoiser) is None:
            return denoiser(self.x[rows], self.node)
        own = {name: each[rows.to(each.device)] for name, each in self.memory.items()}
        x0, after = recalled(denoiser, self.x[rows], self.node, own)
        for name, each in after.items():
            whole = self.memory.get(name)
            if whole is None:
                whole = each.new_zeros((len(self.x), *each.shape[1:]))
            whole = whole.clone()
            whole[rows.to(whole.device)] = each
            self.remember(name, whole)
        return x0

    def streams(self, seeds: Sequence[int], purpose: str) -> list[int]:
        """A stream for each sample, its own for every purpose; `seeds` where none is known yet.

        A stream stays with its sample; ValueError for seeds that are not one per sample.
        """
        known = self.memory.get(STREAMS)
        if known is None:
            if len(seeds) != len(self.x):
                raise ValueError(f"{purpose}: {len(seeds)} seeds for {len(self.x)} samples")
            known = torch.tensor([int(seed) % 2**63 for seed in seeds])
            self.remember(STREAMS, known)
        return salted(known.tolist(), purpose)

    def forget(self, rows: Tensor | None = None) -> None:
        """Let outputs of earlier nodes count no more: for all samples, or where `rows` [B] is true.

        The step from here is then one of first order, and multistep solvers begin again.
        """
        whole = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        fresh = whole if rows is None else rows
        known = self.memory.get(FRESH)
        self.remember(FRESH, fresh if known is None else fresh | known.to(fresh.device))

    def one_level(self, what: str) -> None:
        """ValueError where every sample is at a time of its own."""
        level: Any = self.node.alpha
        if isinstance(level, Tensor):
            raise ValueError(f"{what}: samples at times of their own (a shift) have no one level")

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a tensor [B, ...] for the next evaluation of these samples."""
        self.memory = {**self.memory, name: value}


@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser made of others: `rule` asks them and returns x0.

    Called as any denoiser it has no memory; a run gives it that of its state. `own` are the rows of
    its samples in a larger batch, and the size of that, for networks with something of each sample.
    """

    rule: Callable[[Ask], Tensor]
    own: tuple[Tensor, int] | None = None

    def take(self, rows: Tensor, size: int) -> Guided:
        """That of some samples of a batch of `size`: what it asks is asked for these."""
        return Guided(self.rule, rows_of(self.own, rows, size))

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Predict clean data."""
        return self.recall(x, node, {})[0]

    def recall(self, x: Tensor, node: Node, memory: Memory) -> tuple[Tensor, Memory]:
        """Predict clean data, with what was remembered and what now is."""
        ask = Ask(x, node, memory, self.own)
        return self.rule(ask), ask.memory


def rows_of(own: tuple[Tensor, int] | None, rows: Tensor, size: int) -> tuple[Tensor, int]:
    """Some rows of `own` rows of a batch, as rows of that batch, and its size."""
    return (rows, size) if own is None else (own[0][rows.to(own[0].device)], own[1])
