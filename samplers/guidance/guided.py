"""Denoisers made of others, in such a way that memories of all of them stay with the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...schedules.grid import Node
from ..recall import Denoiser, Memory, recall_of


class Ask:
    """One evaluation of a guided denoiser: its state and node, and what is remembered.

    `ask(denoiser)` evaluates a part there, or at another state. `memory` is to be replaced, not
    changed: the state of the run before holds it, too.
    """

    def __init__(self, x: Tensor, node: Node, memory: Memory) -> None:
        self.x, self.node, self.memory = x, node, memory

    def __call__(self, denoiser: Denoiser, x: Tensor | None = None) -> Tensor:
        """The x0 of a part."""
        recall, x = recall_of(denoiser), self.x if x is None else x
        if recall is None:
            return denoiser(x, self.node)
        x0, self.memory = recall(x, self.node, self.memory)
        return x0

    def remember(self, name: str, value: Tensor) -> None:
        """Keep a tensor [B, ...] for the next evaluation of these samples."""
        self.memory = {**self.memory, name: value}


@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser made of others: `rule` asks them and returns x0.

    Called as any denoiser it has no memory; a run gives it that of its state.
    """

    rule: Callable[[Ask], Tensor]

    def __call__(self, x: Tensor, node: Node) -> Tensor:
        """Predict clean data."""
        return self.recall(x, node, {})[0]

    def recall(self, x: Tensor, node: Node, memory: Memory) -> tuple[Tensor, Memory]:
        """Predict clean data, with what was remembered and what now is."""
        ask = Ask(x, node, memory)
        return self.rule(ask), ask.memory
