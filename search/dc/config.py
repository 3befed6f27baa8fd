"""What ratios are looked for, and by which samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, PositiveInt

from ...eval.models import LabelRule
from ...eval.settings import STRICT, Evaluations, FirstSeed, ModelConfig, Scales, SolverName
from ...samplers.ratios import FIRST
from ...samplers.transforms import ORDER
from ...schedules.grid import End


class RatioConfig(BaseModel):
    """Ratios for `solver` with `options` at every NFE and guidance scale (see `compensate`).

    `samples` noises from `first_seed` on, with `labels`, are sampled by `teacher` with `substeps`
    steps in place of each; `held_out` more tell what the ratios are worth. "greedy" is the released
    procedure, step by step; "joint" goes on from there and looks at the last state alone. Steps
    before `first`, counted from 0, are left as they are.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    nfe: Evaluations = (5, 6, 8, 10)
    guidance: Scales = (1.0,)
    solver: SolverName = "unipc-3"
    options: dict[str, Any] = {}
    spacing: str = "uniform"
    end: End = "zero"
    method: Literal["greedy", "joint"] = "joint"
    order: PositiveInt = ORDER
    overwrite: bool = True
    first: PositiveInt = FIRST
    teacher: SolverName = "unipc-3"
    substeps: PositiveInt = 12
    samples: PositiveInt = 32
    held_out: PositiveInt = 100
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    batch_size: PositiveInt = 64
