"""Networks fine-tuned for the samples of a fixed table (MMD-DDM)."""

from .finetune import MMDConfig, finetune

__all__ = ["MMDConfig", "finetune"]
