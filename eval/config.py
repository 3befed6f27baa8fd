"""The settings of a benchmark run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

# A misspelt key is an error.
STRICT = ConfigDict(extra="forbid", frozen=True)


class SolverConfig(BaseModel):
    """One curve of the plot: a solver with its options, and a spacing and label of its own."""

    model_config = STRICT

    name: str
    label: str = Field(default="", pattern=r"^[\w.+-]*$")
    spacing: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        """Accept `ddim` for `{name: ddim}`."""
        return {"name": value} if isinstance(value, str) else value


class ReferenceConfig(BaseModel):
    """The converged solution: `solver` at `steps`, checked by `check` on `check_images` of them."""

    model_config = STRICT

    solver: str = "unipc-3"
    check: str = "dpmpp-3m"
    steps: PositiveInt = 200
    spacing: str = "lam"
    check_images: PositiveInt = 100


class BenchConfig(BaseModel):
    """What `fewstep bench` runs: every solver at every NFE on every spacing, on the same seeds."""

    model_config = STRICT

    name: str = Field(pattern=r"^[\w.-]+$")
    model: str = "mnist"
    images: PositiveInt = 400
    batch_size: PositiveInt = 100
    seed: int = Field(default=0, ge=0)
    guidance: float = 1.0
    solvers: tuple[SolverConfig, ...] = Field(min_length=1)
    nfe: tuple[PositiveInt, ...] = Field(min_length=1)
    spacings: tuple[str, ...] = Field(default=("lam",), min_length=1)
    end: Literal["zero", "min"] = "zero"
    reference: ReferenceConfig = ReferenceConfig()

    @field_validator("nfe")
    @classmethod
    def ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        """Sort and drop repeats: cheap cells first, so that a stopped run shows all solvers."""
        return tuple(sorted(set(value)))

    @field_validator("solvers")
    @classmethod
    def told_apart(cls, value: tuple[SolverConfig, ...]) -> tuple[SolverConfig, ...]:
        """Refuse two curves of one name: the second would overwrite the first."""
        names = [(solver.label or solver.name, solver.spacing) for solver in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name[0]} is there twice: give one of them a `label`")
        return value
