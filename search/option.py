"""The best value of one number of a solver, such as the strength of DualFast, for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel, Field, PositiveInt, model_validator
from scipy.optimize import minimize_scalar

from .. import samplers
from ..eval.job import numbers
from ..eval.models import LabelRule, NetworkModel
from ..eval.progress import Progress, silent
from ..eval.report import Picture, Section, Table, markdown, save_figure
from ..eval.settings import (
    STRICT,
    Evaluations,
    FirstSeed,
    ModelConfig,
    Scales,
    SolverName,
    options_at,
)
from ..samplers import Tableau
from ..schedules import Grid, grid
from ..schedules.grid import End
from ..storage import digest, environment, read_json, write_atomically, write_json
from .lessons import end_error, lessons_of

CARD, PICTURE, FOUND = "README.md", "option.png", "option.json"
# How near the best value is found, as a share of the interval.
NEAR = 2e-3


class OptionConfig(BaseModel):
    """Which number is looked for between `low` and `high`: `option` of `solver`.

    It is a name of an option, or names with dots for one inside another (`dualfast.strength`);
    `options` are the others. `points` values from low to high are tried first, so that the best of
    several valleys is gone down. A value is judged by the RMSE of `samples` noises from
    `first_seed` on, with `labels`, to `teacher` with `substeps` steps in place of each; `held_out`
    more tell what it is worth.
    """

    model_config = STRICT

    option: str = Field(pattern=r"^\w+(\.\w+)*$")
    low: float
    high: float
    model: ModelConfig = ModelConfig(id="mnist")
    nfe: Evaluations = (5, 6, 8, 10)
    guidance: Scales = (1.0,)
    solver: SolverName = "unipc-3"
    options: dict[str, Any] = {}
    spacing: str = "uniform"
    end: End = "zero"
    points: int = Field(default=11, ge=3)
    teacher: SolverName = "unipc-3"
    substeps: PositiveInt = 12
    samples: PositiveInt = 64
    held_out: PositiveInt = 200
    first_seed: FirstSeed = 2**31
    labels: LabelRule = "balanced"
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def an_interval(self) -> Self:
        """Refuse what is none."""
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low:g} and {self.high:g}")
        return self


@dataclass(frozen=True)
class Best:
    """The best value of one run.

    `bare` and `error` are the RMSE on held-out noises without the option (and all that is said
    inside it) and with it; `tried` holds
    every value with its RMSE on the noises of the search, in order of values.
    """

    nfe: int
    guidance: float
    value: float
    bare: float
    error: float
    tried: tuple[tuple[float, float], ...]


def find_option(
    config: OptionConfig, model: NetworkModel, folder: Path, progress: Progress = silent
) -> list[Best]:
    """The best values for every NFE and guidance scale, kept in `folder`/option.json.

    What was found in the same way is not looked for again. Raises ValueError for a solver that
    draws noise or has stages, and for values that it does not take.
    """
    path = folder / FOUND
    records = read_json(path)["found"] if path.exists() else []
    wanted = [(nfe, scale) for scale in config.guidance for nfe in config.nfe]
    found: list[Best] = []
    for done, (nfe, scale) in enumerate(wanted):
        key = key_of(config, model, nfe, scale)
        kept = next((each for each in records if each["key"] == key), None)
        if kept is None:
            progress(done, len(wanted), f"NFE {nfe}, guidance {scale:g}")
            kept = {"key": key, **asdict(searched(config, model, nfe, scale))}
            records.append(kept)
            # The card comes in the end: of a search that was stopped this is what counts.
            write_json(path, {"found": records})
        found.append(told(kept))
    written(config, model, found, folder)
    return found


def key_of(config: OptionConfig, model: NetworkModel, nfe: int, scale: float) -> str:
    """Digest of all that decides what is found; the content of files too, and the schedule."""
    said = config.model_dump(mode="json", exclude={"nfe", "guidance", "model", "batch_size"})
    bare = table_with(config, nodes_of(config, model, nfe), scale, None)
    return digest(said, model.fingerprint, float(scale), *numbers(bare))


def nodes_of(config: OptionConfig, model: NetworkModel, nfe: int) -> Grid:
    """The grid of one run."""
    return grid(model.schedule, nfe, config.spacing, end=config.end)


def told(record: Mapping[str, Any]) -> Best:
    """What a file says."""
    tried = tuple((value, error) for value, error in record["tried"])
    fields = {key: value for key, value in record.items() if key != "key"}
    return Best(**{**fields, "tried": tried})


def searched(config: OptionConfig, model: NetworkModel, nfe: int, scale: float) -> Best:
    """The best value for one NFE and scale."""
    nodes = nodes_of(config, model, nfe)
    bare = table_with(config, nodes, scale, None)
    if bare.stochastic or bare.grid.stage.any():
        raise ValueError(f"{config.solver} draws noise or has stages: no option is looked for")

    search, held_out = lessons_of(config, model, nodes, scale)
    tried: dict[float, float] = {}

    def miss(value: float) -> float:
        if value not in tried:
            tried[value] = end_error(table_with(config, nodes, scale, value), search)
        return tried[value]

    mesh = np.linspace(config.low, config.high, config.points).tolist()
    best = min(range(len(mesh)), key=lambda i: miss(mesh[i]))
    bounds = mesh[max(best - 1, 0)], mesh[min(best + 1, len(mesh) - 1)]
    near = NEAR * (config.high - config.low)
    minimize_scalar(
        lambda v: miss(float(v)), bounds=bounds, method="bounded", options={"xatol": near}
    )
    value = min(tried, key=miss)
    return Best(
        nfe,
        scale,
        value,
        end_error(bare, held_out),
        end_error(table_with(config, nodes, scale, value), held_out),
        tuple(sorted(tried.items())),
    )


def table_with(config: OptionConfig, nodes: Grid, scale: float, value: float | None) -> Tableau:
    """The solver's table with the option at a value, or without it and what it lies in."""
    names = config.option.split(".")
    options = {key: each for key, each in config.options.items() if key != names[0]}
    if value is not None:
        options = with_option(config.options, names, value)
    try:
        return samplers.build(config.solver, nodes, **options_at(options, scale))
    except TypeError as error:
        raise ValueError(f"{config.solver} with {config.option}: {error}") from error


def with_option(options: Mapping[str, Any], names: Sequence[str], value: float) -> dict[str, Any]:
    """The options with one of them, perhaps inside others, at a value."""
    first, *rest = names
    if not rest:
        return {**options, first: value}
    inside = options.get(first, {})
    if not isinstance(inside, Mapping):
        raise ValueError(f"options: {first} is {inside!r}, which has no {'.'.join(rest)}")
    return {**options, first: with_option(inside, rest, value)}


def written(config: OptionConfig, model: NetworkModel, found: Sequence[Best], folder: Path) -> None:
    """The card and the picture of all that was found."""
    save_figure(picture(config, found), folder / PICTURE)
    settings = config.model_dump(mode="json", exclude={"nfe", "guidance"}, exclude_defaults=True)
    facts, names = environment(model.device), config.option.split(".")
    rows = [
        [
            *(f"{each.nfe}", f"{each.guidance:g}"),
            *(f"{value:.4g}" for value in (each.bare, each.error, each.value)),
            json.dumps(with_option(config.options, names, float(f"{each.value:.4g}"))),
        ]
        for each in found
    ]
    head = ["NFE", "guidance", "without", "with", config.option, "options"]
    notes = (
        f"for the network {model.fingerprint} and {model.schedule!r}",
        f"settings: `{json.dumps(settings)}`",
        *(
            f"NFE {each.nfe} at guidance {each.guidance:g}: the best value is an end of the "
            "interval, which may want to be wider"
            for each in found
            if each.value in (config.low, config.high)
        ),
        f"RMSE to {config.teacher} with {config.substeps} steps for one, of {config.held_out} "
        "noises that were not searched with",
        f"made with fewstep {facts['fewstep']}, Python {facts['python']}, torch {facts['torch']} "
        f"on {facts['device']}",
    )
    sections = [
        Section("RMSE and the best values", (Table(head, rows), Picture(PICTURE, "RMSE by value"))),
        Section("What it is", (notes,)),
    ]
    title = f"{config.option} of {config.solver} for {model.name}"
    write_atomically(folder / CARD, markdown(title, sections))


def picture(config: OptionConfig, found: Sequence[Best]) -> Figure:
    """RMSE by value, a line for each NFE and a panel for each guidance scale."""
    scales = sorted({each.guidance for each in found})
    figure = Figure(figsize=(1.6 + 3.2 * len(scales), 3.2), layout="constrained")
    panels = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
    for axes, scale in zip(panels, scales, strict=True):
        for each in found:
            if each.guidance == scale:
                values, errors = np.array(each.tried).T
                axes.plot(values, errors, "o-", markersize=3, label=f"NFE {each.nfe}")
        axes.set_title(f"guidance {scale:g}", fontsize=10)
        axes.set_xlabel(config.option)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("RMSE")
    panels[0].set_yscale("log")
    panels[-1].legend(fontsize=8, frameon=False)
    return figure
