"""What grids are made from, and how: the settings of each method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, PositiveFloat, PositiveInt

from ... import configs
from ...eval.models import LabelRule
from ...eval.settings import STRICT, Evaluations, FirstSeed, ModelConfig, SolverName
from ...schedules.grid import End
from .gits import GROWTH, TEACHER, Measure
from .nonuniform import SOLVER


class GridConfig(BaseModel):
    """For which model, and for which numbers of steps."""

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    nfe: Evaluations = (5, 8)


class NonUniformConfig(GridConfig):
    """DM-NonUniform: see `nonuniform`. Of the model, only the noise schedule matters."""

    method: Literal["dm"] = "dm"
    solver: SolverName = SOLVER
    power: PositiveFloat = 1.0


class SampledConfig(GridConfig):
    """Nodes are chosen among `candidates` steps of a `spacing`, by what samples of the model say.

    They are `samples` noises from `first_seed` on, with `labels` and `guidance`, sampled by the
    solver `teacher` at the candidates, in batches of `batch_size`.
    """

    candidates: PositiveInt = 60
    spacing: str = "karras"
    teacher: SolverName = TEACHER
    samples: PositiveInt = 256
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    guidance: float = 1.0
    batch_size: PositiveInt = 64


class GITSConfig(SampledConfig):
    """GITS: see `trajectory_costs`; step k counts `growth`^k.

    `end` is where the runs are to end: in clean data, or at the schedule's least noise.
    """

    method: Literal["gits"] = "gits"
    measure: Measure = "deviation"
    growth: PositiveFloat = GROWTH
    end: End = "zero"


class AYSConfig(SampledConfig):
    """Align Your Steps: see `bound_costs`; the data are the samples of the model."""

    method: Literal["ays"] = "ays"


AnyConfig = NonUniformConfig | GITSConfig | AYSConfig

METHODS: dict[str, type[AnyConfig]] = {
    "dm": NonUniformConfig,
    "gits": GITSConfig,
    "ays": AYSConfig,
}


def config_of(values: Mapping[str, Any], where: str = "settings") -> AnyConfig:
    """The settings of the method that `values` name; ValueError says what is wrong with them."""
    method = values.get("method")
    if method not in METHODS:
        raise ValueError(f"{where}: method must be one of {', '.join(METHODS)}, not {method!r}")
    return configs.checked(METHODS[method], values, where)
