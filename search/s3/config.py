"""What a search looks for, and how long."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, Self, get_type_hints

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from ...eval.models import LabelRule
from ...eval.settings import (
    STRICT,
    Evaluations,
    ExtractorConfig,
    FirstSeed,
    ModelConfig,
    SolverName,
)
from ...samplers import is_family
from ...schedules import Schedule
from ...schedules.spacing import SPACINGS, named
from ..presets import PRESETS
from ..space import Space
from .predictor import FOLDS

# Two for each of the predictor's folds.
LEAST = 2 * FOLDS

Strategy = Literal["predictor", "evolution", "random"]
# What a run says of the space; law and NFE are the model's and the search's.
OPEN = tuple(each.name for each in fields(Space) if each.name not in ("law", "nfe"))
# Of what kind each is; a way is said by its name.
KINDS: dict[str, Any] = {**get_type_hints(Space), "spacing": Literal[tuple(SPACINGS)]}
PARTS = {name: TypeAdapter[Any](KINDS[name]) for name in OPEN}


class Measure(BaseModel):
    """One part of the score, with its weight.

    `rmse` is the root mean square to the converged samples of the same noises. `frechet` and
    `kernel` (KID's, unbiased, over all pairs) are distances between features of an extractor: to
    those of the real images of the model, or, with `beside: reference`, of the converged samples.
    """

    model_config = STRICT

    kind: Literal["frechet", "kernel", "rmse"]
    weight: PositiveFloat = 1.0
    features: ExtractorConfig | None = None
    beside: Literal["data", "reference"] = "data"

    @model_validator(mode="before")
    @classmethod
    def from_kind(cls, value: Any) -> Any:
        """Accept `rmse` for `{kind: rmse}`."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse distances of nothing, and features of what has none."""
        if (self.features is None) != (self.kind == "rmse"):
            needs = "takes no" if self.kind == "rmse" else "needs"
            raise ValueError(
                f"{self.kind} {needs} features (an extractor, such as mnist-classifier)"
            )
        return self

    @property
    def converged(self) -> bool:
        """Whether it takes the converged samples."""
        return self.kind == "rmse" or self.beside == "reference"


class SearchConfig(BaseModel):
    """What a search looks for, and how long.

    For each NFE schedules of `space` (fields of `Space`) are scored in batches of `batch`, until
    there are `evaluations` of them, or processors worked for `minutes`, finalists included. The
    score is the weighted sum of `measures` of as many `samples`, from the seed `first_seed` on;
    converged samples, where a measure takes them, are those of `solver` at `converged_steps` on
    `spacing`, and `batch_size` samples go through the network at once.

    The `first` schedules are half `presets` on `spacings`, beginning with those on the nodes of the
    tables `families`, and half drawn. Then the `strategy` proposes: "random" draws, "evolution"
    breeds the best `parents`, two at once with probability `crossover`, and "predictor" scores
    `generations` of `population` children by what it learned, with a share `fresh` as evolution has
    them. In the end the best `finalists` are judged again by `validation` other samples, and the
    best of them there is the result.
    """

    model_config = STRICT

    model: ModelConfig = ModelConfig(id="mnist")
    nfe: Evaluations = (5,)
    measures: tuple[Measure, ...] = Field((Measure(kind="rmse"),), min_length=1)
    samples: int = Field(256, ge=2)
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    guidance: NonNegativeFloat = 1.0
    solver: SolverName = "unipc-3"
    converged_steps: PositiveInt = 50
    spacing: str = "uniform"
    batch_size: PositiveInt = 64
    space: dict[str, Any] = {}
    strategy: Strategy = "predictor"
    evaluations: PositiveInt = 240
    minutes: PositiveFloat | None = None
    first: PositiveInt = 48
    batch: PositiveInt = 16
    presets: tuple[str, ...] = ("ddim", "dpmpp-2m", "unipc-3", "ab-3", "deis-3", "dpmpp-2s")
    spacings: tuple[str, ...] = ("uniform", "quadratic", "power", "lam", "karras", "exponential")
    families: tuple[str, ...] = ()
    parents: PositiveInt = 15
    crossover: float = Field(0.4, ge=0, le=1)
    population: PositiveInt = 200
    generations: PositiveInt = 6
    fresh: float = Field(0.1, ge=0, le=1)
    finalists: PositiveInt = 8
    validation: int = Field(1000, ge=2)
    seed: NonNegativeInt = 0

    @field_validator("space")
    @classmethod
    def known(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuse what a space has not, and values of other kinds than its own."""
        wrong = [key for key in value if key not in OPEN]
        if wrong:
            raise ValueError(f"no such part {wrong[0]!r}; there is {', '.join(OPEN)}")
        said = {}
        for key, each in value.items():
            try:
                said[key] = PARTS[key].validate_python(each)
            except ValidationError as error:
                raise ValueError(f"{key}: {error.errors()[0]['msg']}, got {each!r}") from error
        return said

    @field_validator("presets")
    @classmethod
    def there(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse names of no presets."""
        wrong = [name for name in value if name not in PRESETS]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none; there is {', '.join(PRESETS)}")
        return value

    @model_validator(mode="after")
    def fits(self) -> Self:
        """Refuse names of no spacing and of no tables, and too few schedules to learn from."""
        if self.strategy == "predictor" and self.first < LEAST < self.evaluations:
            raise ValueError(f"first: a predictor learns from {LEAST} schedules at least")
        for name in self.spacings:
            named(name)
        wrong = [name for name in self.families if not is_family(name)]
        if wrong:
            raise ValueError(f"families: {wrong[0]!r} is no family of tables")
        return self

    def space_of(self, law: Schedule, nfe: int) -> Space:
        """The space of one NFE; ValueError for choices that leave no schedule."""
        said = {**self.space}
        if "spacing" in said:
            said["spacing"] = SPACINGS[said["spacing"]]
        return Space(law, nfe, **said)
