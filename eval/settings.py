"""The settings that runs share: which model, which solver, which extractor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from .. import samplers
from ..samplers.family import family_name, within
from ..samplers.spans import Mode
from ..schedules import Grid, Schedule, VPLinear, grid
from ..schedules.grid import End

# A misspelt key is an error.
STRICT = ConfigDict(extra="forbid", frozen=True)
# Where noise is drawn; see `samplers.noise`.
NoiseDevice = Literal["cpu", "cuda"]
# The streams of torch, and of EDM's script, repeat from there on.
SEEDS = 2**32
# Of those that belong to nobody else: a run never has as many samples.
ROOM = 2**20
LABEL = r"^[\w.+-]*$"


def one_or_many(value: Any) -> Any:
    """One value for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def counted(value: Any) -> Any:
    """Refuse what are no numbers of evaluations, in words of their own."""
    for each in value:
        if not str(each).strip().isdecimal() or int(each) < 1:
            raise ValueError(f"whole numbers from 1, such as 3,5,8, not {each!r}")
    return value


def rising(value: tuple[float, ...]) -> tuple[float, ...]:
    """Sorted, each once."""
    return tuple(sorted(set(value)))


def roomy(value: int) -> int:
    """Refuse a first seed after which seeds would stand for the same noise."""
    if value >= SEEDS - ROOM:
        raise ValueError(f"must leave room for the samples below {SEEDS}, not {value}")
    return value


def there(value: str) -> str:
    """Refuse a solver that there is not."""
    return samplers.solver(value).name


# Reports begin at 0: what decides about a sampler is not to be what it is measured by.
FirstSeed = Annotated[NonNegativeInt, AfterValidator(roomy)]
SolverName = Annotated[str, AfterValidator(there)]
# Cheap ones first, so that a stopped run shows something of all.
Evaluations = Annotated[
    tuple[PositiveInt, ...],
    Field(min_length=1),
    BeforeValidator(counted),
    BeforeValidator(one_or_many),
    AfterValidator(rising),
]
Scales = Annotated[
    tuple[NonNegativeFloat, ...],
    Field(min_length=1),
    BeforeValidator(one_or_many),
    AfterValidator(rising),
]


class StartConfig(BaseModel):
    """Where a run begins: Gaussian teleportation past the first steps, which asks no network.

    The noise of the schedule's own beginning goes along the closed form of a normal law of the
    data, `teleport`, to where sigma / alpha is `skip`, and all evaluations are spent from there on.
    `teleport` is a file of laws (see `gaussian_from`), or mnist with one law of all digits or, if
    `classes`, one of each.
    """

    model_config = STRICT

    teleport: str
    skip: PositiveFloat
    classes: bool = False

    def __str__(self) -> str:
        return f"{self.teleport}{' by class' if self.classes else ''} to {self.skip:g}"


class ShiftConfig(BaseModel):
    """Times that are shifted by the variance of each sample: arguments of `samplers.time_shift`."""

    model_config = STRICT

    window: NonNegativeFloat
    cutoff: FiniteFloat
    mode: Mode = "source"
    data_variance: NonNegativeFloat = 0.0
    resolution: NonNegativeFloat | None = None

    def __str__(self) -> str:
        said = (
            f"{self.mode} by {self.window:g} above {self.cutoff:g}, "
            f"data of variance {self.data_variance:g}"
        )
        return said if self.resolution is None else f"{said}, {self.resolution:g} apart"


class ScaleConfig(BaseModel):
    """Predicted noise is divided by base + slope n at node n: arguments of `samplers.scale_eps`."""

    model_config = STRICT

    base: Annotated[PositiveFloat, Field(allow_inf_nan=False)] = 1.0
    slope: FiniteFloat = 0.0

    @model_validator(mode="before")
    @classmethod
    def from_number(cls, value: Any) -> Any:
        """Accept 1.01 for `{base: 1.01}`."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"base": value} if number else value

    def __str__(self) -> str:
        return f"{self.base:g}{f' {self.slope:+g} n' if self.slope else ''}"


class SolverConfig(BaseModel):
    """One curve of the plot: a solver with its options, and what else is its own.

    `label` is its name in the report. `spacing`, `end` and `nfe` take the place of those of the
    run, and `grid` are further options of `schedules.grid`. `law: vp` does it all in the time of
    the linear variance-preserving law that begins and ends where the model does, as DEIS wants it
    on EDM networks. `start` lets it begin later than where noise is drawn, `shift` moves the times
    of samples and `scale_eps` makes predicted noise smaller; pipelines have none of the three.
    """

    model_config = STRICT

    name: str
    label: str = Field(default="", pattern=LABEL)
    spacing: str | None = None
    end: End | None = None
    nfe: tuple[PositiveInt, ...] = ()
    law: Literal["vp"] | None = None
    start: StartConfig | None = None
    shift: ShiftConfig | None = None
    scale_eps: ScaleConfig | None = None
    grid: dict[str, float] = {}
    options: dict[str, Any] = {}

    @property
    def besides(self) -> list[str]:
        """What it asks of a run besides its table."""
        return [key for key in ("start", "shift", "scale_eps") if getattr(self, key) is not None]

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        """Accept `ddim` for `{name: ddim}`."""
        return {"name": value} if isinstance(value, str) else value


class ModelConfig(BaseModel):
    """A model by name, folder, file or hub id (see `load_model`), and the real images it is after.

    `data` are images (see `open_images`), `statistics` files made of them: one by the name of each
    extractor, or a single one; of files of other programs `convention` says how images were resized
    (see `load_statistics`). `prompts` are texts, or a file with one a line; `call` are further
    arguments of a pipeline.
    """

    model_config = STRICT

    id: str
    label: str = Field(default="", pattern=LABEL)
    dtype: str = "float32"
    data: str | None = None
    statistics: Path | dict[str, Path] = {}
    convention: str | None = None
    prompts: tuple[str, ...] = ()
    call: dict[str, Any] = {}
    trust_pickle: bool = False

    @model_validator(mode="before")
    @classmethod
    def from_id(cls, value: Any) -> Any:
        """Accept `mnist` for `{id: mnist, data: mnist}`, other ids likewise."""
        if isinstance(value, str):
            value = {"id": value}
        if isinstance(value, dict) and value.get("id") == "mnist" and not value.get("statistics"):
            return {"data": "mnist", **value}
        return value

    @field_validator("prompts", mode="before")
    @classmethod
    def from_file(cls, value: Any) -> Any:
        """Read the lines of a file."""
        if not isinstance(value, str):
            return value
        path = Path(value)
        if not path.is_file():
            raise ValueError(f"prompts are a list, or a file with one a line; no file {value}")
        return [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]

    @property
    def name(self) -> str:
        """What it is called in the report."""
        return self.label or Path(self.id).name.removesuffix(".pkl") or self.id


class ExtractorConfig(BaseModel):
    """An extractor by name or file, with the options of what builds it (see `extractor`)."""

    model_config = STRICT

    id: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def from_id(cls, value: Any) -> Any:
        """Accept `pixels` for `{id: pixels}`."""
        return {"id": value} if isinstance(value, str) else value


class Planned(NamedTuple):
    """The table of a solver, and the shift of its times if it has one."""

    table: samplers.Tableau
    shift: samplers.TimeShift | None = None


def table_within(
    schedule: Schedule,
    solver: SolverConfig,
    nfe: int,
    spacing: str,
    end: End,
    guidance: float | None = None,
) -> samplers.Tableau:
    """The table of `planned`."""
    return planned(schedule, solver, nfe, spacing, end, guidance).table


def planned(
    schedule: Schedule,
    solver: SolverConfig,
    nfe: int,
    spacing: str,
    end: End,
    guidance: float | None = None,
) -> Planned:
    """The table of one solver that spends `nfe`, or the most below that it can, with its shift.

    Of a file of tables it is one of those, at that `guidance` where they depend on it, as ratios of
    a file may. With a `start` it begins where that ends. Raises TooFewEvaluations if it can spend
    none, and ValueError if tables are of another noise schedule, if it cannot begin there, and for
    times that cannot be shifted.
    """
    name = solver.label or solver.name
    if samplers.is_family(solver.name):
        if solver.start is not None or solver.shift is not None:
            raise ValueError(f"{solver.name} has nodes of its own: no start, and no shift of times")
        try:
            table = within(samplers.load_family(solver.name, guidance), nfe)
        except samplers.TooFewEvaluations as error:
            raise samplers.TooFewEvaluations(f"{solver.name}: {error}") from error
        if table.grid.schedule != schedule:
            raise ValueError(
                f"{solver.name} has tables of {table.grid.schedule}, not of {schedule}"
            )
        return Planned(table.renamed(family_name(solver.name)))
    law = schedule
    if solver.law == "vp":
        law = VPLinear.between(*(float(schedule.nsr(t)) for t in (schedule.t_min, schedule.t_max)))

    places: dict[str, Any] = dict(solver.grid)
    if solver.start is not None:
        if "t_max" in places:
            raise ValueError(f"{name}: start.skip and t_max say the same")
        places["t_max"] = samplers.skip_time(law, solver.start.skip)

    made: list[Grid] = []

    def make_grid(steps: int) -> Grid:
        made.append(grid(law, steps, solver.spacing or spacing, end=solver.end or end, **places))
        return made[-1]

    options = options_at(solver.options, guidance)
    try:
        table = samplers.build_within(solver.name, nfe, make_grid, **options)
    except TypeError as error:
        # An option that the builder, or the grid, does not have.
        raise ValueError(f"solver {name}: {error}") from error
    if solver.shift is None:
        return Planned(table)
    build = partial(samplers.build, solver.name, **options)
    try:
        shift = samplers.time_shift(build, made[-1], **solver.shift.model_dump())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Planned(table, shift)


def options_at(options: Mapping[str, Any], guidance: float | None) -> dict[str, Any]:
    """A solver's options at a guidance scale, which the ratios of a file depend on."""
    how = options.get("compensate")
    how = {"ratios": how} if isinstance(how, str) else how
    if isinstance(how, dict) and isinstance(how.get("ratios"), str) and guidance is not None:
        return {**options, "compensate": {"guidance": guidance, **how}}
    return dict(options)
