"""Denoisers that remember something of each sample from one evaluation to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..schedules.grid import Node

# What is remembered of each sample, [B, ...] by name.
Memory = Mapping[str, Tensor]
# Any callable that predicts clean data from a state and its node, like-shaped. One with a method
# `recall(x, node, memory) -> x0, memory` is given what it left in the state of the run.
Denoiser = Callable[[Tensor, Node], Tensor]


# Where denoisers that draw find the stream of each sample, int64 [B]; `State.reseed` changes it.
STREAMS = "streams"
# Where a denoiser says, bool [B], for which samples the outputs before this one no longer count.
FRESH = "fresh"


def recall_of(denoiser: Denoiser) -> Callable[[Tensor, Node, Memory], tuple[Tensor, Memory]] | None:
    """The method of a denoiser that remembers; None for one that does not."""
    found: Any = getattr(denoiser, "recall", None)
    return found


def taken(denoiser: Denoiser, rows: Tensor, size: int) -> Denoiser:
    """The denoiser of some samples of a batch, of one that has something of each (`take`)."""
    take: Any = getattr(denoiser, "take", None)
    found: Denoiser = denoiser if take is None else take(rows, size)
    return found


def recalled(denoiser: Denoiser, x: Tensor, node: Node, memory: Memory) -> tuple[Tensor, Memory]:
    """x0 of any denoiser, and what is remembered after it."""
    recall = recall_of(denoiser)
    return (denoiser(x, node), memory) if recall is None else recall(x, node, memory)
