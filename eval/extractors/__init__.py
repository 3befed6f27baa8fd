"""Extractors of features, and what they are."""

from __future__ import annotations

from .catalogue import EXTRACTORS, extractor
from .extractor import Extractor, Outputs, unrounded
from .weights import MissingWeights

__all__ = ["EXTRACTORS", "Extractor", "MissingWeights", "Outputs", "extractor", "unrounded"]
