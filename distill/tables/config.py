"""What tables are learned from, and how."""

from __future__ import annotations

import itertools
from typing import Any, Self

from pydantic import (
    BaseModel,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ...eval.models import LabelRule
from ...eval.settings import (
    STRICT,
    Evaluations,
    ExtractorConfig,
    FirstSeed,
    ModelConfig,
    Scales,
    SolverName,
)
from ...samplers.fit import Free
from ...training import TrainingSettings, gathered
from .gauss_newton import What
from .objective import Kind


class TableConfig(BaseModel):
    """What tables are learned from, and how.

    A teacher, `solver` at `teacher_steps`, is run once on `samples` + `held_out` noises from
    `first_seed` on. For each NFE nodes are chosen by closed-form fits to the first `search` of them
    (`place`, at most `moves` single moves) and rows are fitted to all, or, without `fitted`, the
    solver `base` on `spacing` is begun with. The numbers `what` are refined by Gauss-Newton
    `steps`, each derived from `sketch` of the samples in turn (rounded to batches), then by a
    `training` if there is one (its settings may stand here by their own names: `max_train_steps`,
    `learning_rate`, ..), in batches of `train_batch_size`; what does best on the held-out noises is
    kept.

    `guidance` may be several scales: the numbers are then polynomials of at most `degree` in the
    scale, found at once for these and those halfway between, and the family serves every scale in
    their range.

    `free` as in `samplers.fit`; `loss`, `eps`, `features` (of an extractor), their weight and
    `likeness` as in `Objective`; `base`, `ball` and `gradient_checkpointing` as in `table_task`.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    nfe: Evaluations = (5,)
    solver: SolverName = "unipc-3"
    teacher_steps: PositiveInt = 64
    spacing: str = "uniform"
    samples: PositiveInt = 300
    held_out: PositiveInt = 100
    search: PositiveInt = 100
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    guidance: Scales = (1.0,)
    degree: PositiveInt = 2
    base: SolverName = "unipc-3"
    fitted: bool = True
    moves: NonNegativeInt = 25
    steps: NonNegativeInt = 6
    sketch: PositiveInt = 100
    what: tuple[What, ...] = ("weights", "times")
    free: Free = "inner"
    loss: Kind = "l1"
    eps: PositiveFloat = 0.03
    features: ExtractorConfig | None = None
    feature_weight: PositiveFloat = 0.4
    likeness: NonNegativeFloat = 0.0
    training: TrainingSettings | None = None
    train_batch_size: PositiveInt = 48
    ball: NonNegativeFloat = 0.0
    gradient_checkpointing: bool = False
    batch_size: PositiveInt = 100

    @model_validator(mode="before")
    @classmethod
    def by_name(cls, values: Any) -> Any:
        """Accept settings of the training by their own names, with its length among them."""
        found = gathered(values, None)
        told = found.get("training") if isinstance(found, dict) else None
        if isinstance(told, dict) and "max_train_steps" not in told:
            raise ValueError(
                f"{', '.join(told)}: of a descent, which there is only with max_train_steps"
            )
        return found

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales to learn at: those given, and the middles between, where none were given."""
        middles = ((a + b) / 2 for a, b in itertools.pairwise(self.guidance))
        return tuple(sorted({*self.guidance, *middles}))

    @property
    def knots(self) -> tuple[float, ...]:
        """The scales that tables are kept for: the ends, and those evenly between."""
        count = min(self.degree + 1, len(self.guidance))
        last = max(count - 1, 1)
        low, high = self.guidance[0], self.guidance[-1]
        return tuple(low + (high - low) * k / last for k in range(count))

    @model_validator(mode="after")
    def enough(self) -> Self:
        """Refuse a training in batches of more samples than there are, or of several scales."""
        if self.training is not None and len(self.guidance) > 1:
            raise ValueError("a training by gradients is for one guidance scale; give one, or none")
        if min(self.samples, self.held_out, self.search) < len(self.scales):
            many = f"{len(self.scales)} guidance scales, with those between"
            raise ValueError(f"samples, held_out and search must each cover {many}")
        if self.likeness and self.features is None:
            raise ValueError("likeness is that of sets of features; name an extractor in features")
        if self.likeness and self.training is not None:
            raise ValueError("a training by gradients sees few samples at once: no likeness")
        if self.training is not None and self.train_batch_size > self.samples:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} is more than the {self.samples} samples"
            )
        return self
