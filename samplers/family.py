"""Several tables in one file, by the network evaluations that they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import configs
from ..storage import write_json
from . import files
from .blend import Blend
from .tableau import Tableau, TooFewEvaluations

FORMAT = "fewstep.family"
VERSION = 1
# Of a run, in its folder.
FAMILY = "tables.json"
# Of the packaged files.
KIND = "solvers"


def families() -> list[str]:
    """The names of the families that come with fewstep, each for a model of its own."""
    return sorted(path.stem for path in configs.packaged(KIND).glob("*.json"))


def is_family(name: str) -> bool:
    """Whether a text means tables: a packaged family, a .json file, or a folder with such tables.

    No solver's name has a slash, so a text with one is a path.
    """
    path = Path(name)
    return (
        name in families()
        or path.suffix == ".json"
        or path.name != name
        or (path / FAMILY).is_file()
    )


def family_name(name: str) -> str:
    """What tables are called: like their file, or, for those of a run, like its folder."""
    path = Path(name)
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if path.name == FAMILY else path.stem


def located(name: str | Path) -> Path:
    """The file of what `is_family`; FileNotFoundError if there is none."""
    path = Path(name)
    if str(name) in families():
        return configs.packaged(KIND) / f"{name}.json"
    if path.is_dir():
        path = path / FAMILY
    if not path.is_file():
        known = f"; with fewstep comes {', '.join(families())}" if families() else ""
        raise FileNotFoundError(f"no tables in {name}: there is no file {path}{known}")
    return path


def save_family(tables: Mapping[int, Tableau | Blend], path: str | Path) -> None:
    """Write tables by their NFE as JSON (schema `fewstep.family`, version 1), atomically.

    For a `Blend` its scales ("guidance") and tables are written.
    """
    wrong = [nfe for nfe, table in tables.items() if table.nfe != nfe]
    if wrong:
        raise ValueError(f"the table under {wrong[0]} takes {tables[wrong[0]].nfe} evaluations")
    data = {str(nfe): written(tables[nfe]) for nfe in sorted(tables)}
    write_json(Path(path), {"format": FORMAT, "version": VERSION, "tables": data})


def written(table: Tableau | Blend) -> dict[str, Any]:
    """A table, or a blend, as JSON values."""
    if isinstance(table, Tableau):
        return table.to_dict()
    several = [each.to_dict() for each in table.tables]
    return {"guidance": list(table.scales), "tables": several}


def load_family(path: str | Path, guidance: float | None = None) -> dict[int, Tableau]:
    """The tables of a file of `save_family`, or the one of a file of `Tableau.save`, by NFE.

    `path` may be the name of one of `families`, and a folder with `FAMILY`. `guidance` is the scale
    for which tables that depend on it are wanted; there is a warning where they were not learned
    for it. Raises ValueError that says what is wrong with a bad file, and if it needs a scale that
    is not given.
    """
    found = {}
    for nfe, each in load_blends(path).items():
        if guidance is not None:
            found[nfe] = each.at(guidance)
        elif len(each.tables) == 1:
            found[nfe] = each.tables[0]
        else:
            low, high = each.scales[0], each.scales[-1]
            raise ValueError(
                f"{path} has tables for guidance {low:g} to {high:g}: say which scale (guidance=..)"
            )
    return found


def load_blends(path: str | Path) -> dict[int, Blend]:
    """What is in such a file, for all scales; a plain table is a blend of itself."""
    path = located(path)
    data = files.read(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        table = Tableau.from_dict(data, str(path))
        return {table.nfe: Blend((), (table,))}
    if data.get("version") != VERSION or not isinstance(data.get("tables"), dict):
        raise ValueError(f"{path}: schema {data.get('version')!r}; this fewstep reads {VERSION}")
    found = [read(each, f"{path}: table {nfe}") for nfe, each in data["tables"].items()]
    return {blend.nfe: blend for blend in found}


def read(data: Any, where: str) -> Blend:
    """Inverse of `written`, with validation."""
    if not isinstance(data, dict) or "guidance" not in data:
        return Blend((), (Tableau.from_dict(data, where),))
    scales, tables = data["guidance"], data.get("tables")
    if not isinstance(scales, list) or not isinstance(tables, list):
        raise ValueError(f"{where}: guidance and tables must be lists")
    made = (Tableau.from_dict(each, f"{where}, number {k}") for k, each in enumerate(tables))
    try:
        return Blend(tuple(map(float, scales)), tuple(made))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def within(tables: Mapping[int, Tableau], nfe: int) -> Tableau:
    """The table of most evaluations within `nfe`; TooFewEvaluations if all take more."""
    possible = [each for each in tables if each <= nfe]
    if not possible:
        known = ", ".join(map(str, tables))
        raise TooFewEvaluations(f"there are tables of {known} evaluations, and none within {nfe}")
    return tables[max(possible)]
