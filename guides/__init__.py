"""What guidance is trained from: labels of data, and classifiers of noisy states that tell them."""

from .classifier import NoisyClassifier, load_noisy_classifier
from .labels import label_minority, label_parts, quantile_labels
from .learn import train_classifier
from .settings import ClassifierConfig, MinorityConfig, PartsConfig

__all__ = [
    "ClassifierConfig",
    "MinorityConfig",
    "NoisyClassifier",
    "PartsConfig",
    "label_minority",
    "label_parts",
    "load_noisy_classifier",
    "quantile_labels",
    "train_classifier",
]
