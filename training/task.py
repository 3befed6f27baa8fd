"""What is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Module = nn.Module


@dataclass(frozen=True, eq=False)
class Task:
    """`module`, trained by the gradient of a loss.

    Parameters
    ----------
    module
        Holds all that is trained, as parameters.
    loss
        loss(module, step, part, parts) is that of one part of the batch of a step, a scalar whose
        mean over the `parts` is the loss of the whole. Which samples these are depends on these
        numbers alone: then any division over processes and accumulation is the same training.
    validate
        validate(module) gives numbers, of which the first is to become small; None: there are none,
        and the last parameters are the result.
    preview
        preview(module, path) draws a picture of how far it is.
    rate
        rate(step) is the factor of the learning rate, instead of that of `lr_scheduler`.
    facts
        What the training depends on besides its settings, as JSON values; it does not go on from a
        checkpoint of others.
    memory
        What losses remember from step to step, as buffers: checkpoints hold it.
    """

    module: Module
    loss: Callable[[Module, int, int, int], Tensor]
    validate: Callable[[Module], Mapping[str, float]] | None = None
    preview: Callable[[Module, Path], None] | None = None
    rate: Callable[[int], float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: Module = field(default_factory=nn.Module)
