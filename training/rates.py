"""Learning rates over the steps, those of diffusers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .settings import TrainingSettings


def rate(settings: TrainingSettings, optimizer: torch.optim.Optimizer) -> Callable[[int], float]:
    """The factor of the learning rate at a step, a function of the step alone."""
    # Here, because it takes seconds to import.
    from diffusers.optimization import get_scheduler

    made = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.max_train_steps,
    )
    (factor,) = made.lr_lambdas
    return lambda step: float(factor(step))
