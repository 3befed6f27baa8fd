"""Distances between sets of images, from their features: streaming, with standard errors."""

from .estimate import Estimate, difference, jackknife
from .frechet import FrechetDistance
from .inception_score import InceptionScore
from .kernel import KernelDistance, cmmd, gaussian, polynomial
from .moments import Moments, frechet_distance, half_split_distances, moments
from .neighbours import Neighbours
from .rarity import Rarity

__all__ = [
    "Estimate",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "Moments",
    "Neighbours",
    "Rarity",
    "cmmd",
    "difference",
    "frechet_distance",
    "gaussian",
    "half_split_distances",
    "jackknife",
    "moments",
    "polynomial",
]
