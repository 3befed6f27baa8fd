"""The settings of a benchmark run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ...schedules.grid import End
from ..models import LabelRule
from ..score import MEASURES
from ..settings import (
    SEEDS,
    STRICT,
    Evaluations,
    ExtractorConfig,
    ModelConfig,
    NoiseDevice,
    SolverConfig,
    one_or_many,
)


class ReferenceConfig(BaseModel):
    """The converged solution: `solver` at `steps` for the first `images` samples.

    On `check_images` of them it is checked by the solver `check`.
    """

    model_config = STRICT

    solver: str = "unipc-3"
    check: str = "dpmpp-3m"
    steps: PositiveInt = 200
    spacing: str = "lam"
    images: PositiveInt = 400
    check_images: PositiveInt = 100


class PublishedConfig(BaseModel):
    """Values of a paper beside ours: by curve and NFE, of one quantity such as "frechet".

    They stand beside the cells of `model` (the name in this run; None: of any) at `guidance` (None:
    at any). A value of ours agrees if it is within `tolerance` of theirs, relative; that is said
    only of as many `images` as theirs, where the number decides (None).
    """

    model_config = STRICT

    source: str
    quantity: str = "frechet"
    model: str | None = None
    guidance: float | None = None
    tolerance: PositiveFloat = 0.03
    images: PositiveInt | None = 50_000
    values: dict[str, dict[int, float]]


class BenchConfig(BaseModel):
    """What `fewstep bench` runs: models x guidance x seeds x solvers x spacings x NFE."""

    model_config = STRICT

    name: str = Field(pattern=r"^[\w.-]+$")
    models: tuple[ModelConfig, ...] = Field(default=(ModelConfig(id="mnist"),), min_length=1)
    images: PositiveInt = 400
    batch_size: PositiveInt = 100
    shard_size: PositiveInt = 1000
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    labels: LabelRule = "balanced"
    guidance: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    noise_device: NoiseDevice = "cpu"
    solvers: tuple[SolverConfig, ...] = Field(min_length=1)
    nfe: Evaluations
    spacings: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    end: End = "zero"
    extractors: tuple[ExtractorConfig, ...] = (ExtractorConfig(id="mnist-classifier"),)
    metrics: tuple[str, ...] = ("frechet",)
    keep: Literal["none", "features", "png", "npz"] = "none"
    preview: PositiveInt = 100
    reference: ReferenceConfig | None = ReferenceConfig()
    published: tuple[PublishedConfig, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def in_the_singular(cls, value: Any) -> Any:
        """Accept `model`, `seed`, `extractor` and `metric`."""
        return plural(value) if isinstance(value, dict) else value

    @field_validator(
        *("models", "seeds", "guidance", "solvers", "spacings", "extractors", "metrics"),
        mode="before",
    )
    @classmethod
    def several(cls, value: Any) -> Any:
        """Accept one for a list of one."""
        return one_or_many(value)

    @field_validator("solvers")
    @classmethod
    def told_apart(cls, value: tuple[SolverConfig, ...]) -> tuple[SolverConfig, ...]:
        """Refuse two curves of one name: the second would overwrite the first."""
        unique([(solver.label or solver.name, solver.spacing) for solver in value])
        return value

    @model_validator(mode="after")
    def published_of_one(self) -> BenchConfig:
        """Refuse values of a paper that would stand beside several models or guidance scales."""
        names = [model.name for model in self.models]
        for each in self.published:
            for key, mine, there in (
                ("model", each.model, names),
                ("guidance", each.guidance, list(self.guidance)),
            ):
                if mine is None and len(there) > 1:
                    raise ValueError(f"{each.source}: say of which {key} the published values are")
            if each.model is not None and each.model not in names:
                raise ValueError(
                    f"{each.source}: there is no model {each.model!r}, only {', '.join(names)}"
                )
        return self

    @field_validator("metrics")
    @classmethod
    def known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse metrics that there are not."""
        for name in value:
            if name not in MEASURES:
                raise ValueError(f"unknown metric {name!r}; choose from {', '.join(MEASURES)}")
        return value

    @field_validator("models")
    @classmethod
    def models_told_apart(cls, value: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        """Refuse two models of one name."""
        unique([(model.name, None) for model in value])
        return value

    @field_validator("seeds")
    @classmethod
    def apart(cls, value: tuple[int, ...], info: Any) -> tuple[int, ...]:
        """Refuse runs that share seeds: their mean would count some samples twice."""
        images = info.data.get("images", 0)
        if max(value) + images > SEEDS:
            raise ValueError("seeds must be below 2^32: torch's streams repeat from there on")
        for first, second in zip(sorted(value), sorted(value)[1:], strict=False):
            if second < first + images:
                raise ValueError(
                    f"runs from seeds {first} and {second} overlap with {images} images each"
                )
        return value


def plural(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with `models` for `model` and so on; ValueError if both are there."""
    names = {"model": "models", "seed": "seeds", "extractor": "extractors", "metric": "metrics"}
    twice = [one for one, many in names.items() if one in values and many in values]
    if twice:
        raise ValueError(f"{twice[0]} and {names[twice[0]]} say the same: give one of them")
    return {names.get(key, key): item for key, item in values.items()}


def unique(names: list[tuple[str, str | None]]) -> None:
    """ValueError if a name is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name[0]} is there twice: give one of them a `label`")
