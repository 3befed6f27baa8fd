"""Guidance as denoiser wrappers: samplers never see it."""

from .experts import ensemble
from .free import Scale, anew, apg, autoguidance, cfg, interval, plus_plus, rescaled, zero_star
from .gradients import classifier, dps, posterior
from .guided import Ask, Guided
from .minority import minority_score, node_at, self_guided
from .threshold import dynamic_threshold, thresholded

__all__ = [
    "Ask",
    "Guided",
    "Scale",
    "anew",
    "apg",
    "autoguidance",
    "cfg",
    "classifier",
    "dps",
    "dynamic_threshold",
    "ensemble",
    "interval",
    "minority_score",
    "node_at",
    "plus_plus",
    "posterior",
    "rescaled",
    "self_guided",
    "thresholded",
    "zero_star",
]
