"""What a run remembers between two steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .program import Line, Numbers

# States are kept in these as they come, and raised to float32 from others.
WIDE = (torch.float32, torch.float64)


@dataclass(eq=False)
class Memory:
    """The newest outputs and noises, and the state as it was summed.

    `state` is None where the pipeline holds the very sum and no line of the table needs it;
    `rounded` is the dtype in which the pipeline got it. The lists are the pipeline's to change.
    """

    outputs: list[Tensor] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    state: Tensor | None = None
    rounded: torch.dtype = torch.float32

    def goes_on_from(self, x: Tensor, line: Line) -> Tensor:
        """The state of `line` when a pipeline hands in x, in the dtype of states.

        Inside a step it is our own, whatever was done to the sample. Between steps it is our own
        where x is what that became in the dtype of the pipeline, and x where it was changed.
        """
        if self.state is None or self.state.shape != x.shape:
            return x
        if line.inside:
            return self.state
        return torch.where(self.state.to(self.rounded).to(x.dtype) == x, self.state, x)

    def at_hand(self, line: Line, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and noises for `line`; a compiled step has as many at every line."""
        if not torch.compiler.is_compiling():
            return list(self.outputs), list(self.noises)
        return (
            padded(self.outputs, line.window, x),
            padded(self.noises, line.noise_window, x),
        )


def remembered(
    line: Line, outputs: list[Tensor], noises: list[Tensor], state: Tensor, returned: Tensor
) -> Memory:
    """The memory after a line that ended in `state`, of which the pipeline gets `returned`."""
    if not torch.compiler.is_compiling():
        outputs, noises = newest(outputs, line.keep), newest(noises, line.keep_noise)
    keeps = line.leads_inside or returned is not state
    return Memory(outputs, noises, state if keeps else None, returned.dtype)


def padded(items: list[Tensor], count: int, like: Tensor) -> list[Tensor]:
    """The last `count` of them, with zeros for those that are not there yet and not used."""
    # Each a tensor of its own: which are the same is part of what a graph is compiled for.
    zeros = [torch.zeros_like(like) for _ in range(count - len(items))]
    return newest([*zeros, *items], count)


def newest(items: list[Tensor], count: int) -> list[Tensor]:
    """The last `count` of them."""
    return items[len(items) - count :]


def numbers_of(line: Line) -> Numbers:
    """The numbers of a line; in a compiled step as tensors, so that one graph serves all lines."""
    return line.uniform() if torch.compiler.is_compiling() else line.numbers
