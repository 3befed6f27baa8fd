"""What can be sampled: networks and pipelines, by name, folder, file or hub id."""

from .bundled import MODELS
from .catalogue import configured, load_model, pick_device
from .draw import RULES, Draw, LabelRule, label_rule
from .model import Model, NetworkModel, counting, in_batches
from .networks import edm_model, unet_model

__all__ = [
    "MODELS",
    "RULES",
    "Draw",
    "LabelRule",
    "Model",
    "NetworkModel",
    "configured",
    "counting",
    "edm_model",
    "in_batches",
    "label_rule",
    "load_model",
    "pick_device",
    "unet_model",
]
