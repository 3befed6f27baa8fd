"""One training loop for everything that is trained: resumable, on any number of processes."""

from .batches import share, shuffled
from .loop import Outcome, accelerator_for, train
from .settings import TrainingSettings, gathered
from .task import Module, Task

__all__ = [
    "Module",
    "Outcome",
    "Task",
    "TrainingSettings",
    "accelerator_for",
    "gathered",
    "share",
    "shuffled",
    "train",
]
