"""What a run remembers between two steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .program import Line

# States are kept in these as they come, and raised to float32 from others.
WIDE = (torch.float32, torch.float64)


@dataclass(eq=False, slots=True)
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

    def check(self, x: Tensor) -> None:
        """ValueError if x is not shaped as what is remembered."""
        for held in (*self.outputs[-1:], *self.noises[-1:]):
            if held.shape != x.shape:
                raise ValueError(
                    f"the state is {tuple(x.shape)}, in the step before it was "
                    f"{tuple(held.shape)}: call set_timesteps between runs"
                )

    def at_hand(self, line: Line, x: Tensor, compiling: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and noises for `line`; a compiled step has as many at every line."""
        if not compiling:
            return self.outputs.copy(), self.noises.copy()
        return (
            padded(self.outputs, line.window, x),
            padded(self.noises, line.noise_window, x),
        )


def padded(items: list[Tensor], count: int, like: Tensor) -> list[Tensor]:
    """The last `count` of them, with zeros for those that are not there yet and not used."""
    # Each a tensor of its own: which are the same is part of what a graph is compiled for.
    zeros = [torch.zeros_like(like) for _ in range(count - len(items))]
    return newest([*zeros, *items], count)


def newest(items: list[Tensor], count: int) -> list[Tensor]:
    """The last `count` of them."""
    return items[len(items) - count :]
