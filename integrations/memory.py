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
        where x is what that became in the dtype of the pipeline, and x where it was changed. Raises
        ValueError if x is not shaped as what is remembered.
        """
        if self.outputs and self.outputs[-1].shape != x.shape:
            raise ValueError(
                f"the state is {tuple(x.shape)}, in the step before it was "
                f"{tuple(self.outputs[-1].shape)}: call set_timesteps between runs"
            )
        if self.state is None or self.state.shape != x.shape:
            return x
        if line.inside:
            return self.state
        return torch.where(self.state.to(self.rounded).to(x.dtype) == x, self.state, x)

    def padded(self, line: Line, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """As many outputs and noises as any line needs: for compiled steps, which are all alike."""
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
