"""Several tables in one file, by the network evaluations that they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import configs
from ..storage import write_json
from . import files
from .blend import Blend
from .tableau import Tableau

FORMAT = "fewstep.family"
VERSION = 1
# Of the packaged files.
KIND = "solvers"


def families() -> list[str]:
    """The names of the families that come with fewstep, each for a model of its own."""
    return sorted(path.stem for path in configs.packaged(KIND).glob("*.json"))


def is_family(name: str) -> bool:
    """Whether a text means tables in a file: one that ends in .json, or a packaged family."""
    return name.endswith(".json") or name in families()


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

    `path` may be the name of one of `families`. `guidance` is the scale for which tables that
    depend on it are wanted. Raises ValueError that says what is wrong with a bad file, and if it
    needs a scale that is not given.
    """
    found = {}
    for nfe, each in load_blends(path).items():
        if len(each.tables) == 1:
            found[nfe] = each.tables[0]
        elif guidance is not None:
            found[nfe] = each.at(guidance)
        else:
            low, high = each.scales[0], each.scales[-1]
            raise ValueError(
                f"{path} has tables for guidance {low:g} to {high:g}: say which scale (guidance=..)"
            )
    return found


def load_blends(path: str | Path) -> dict[int, Blend]:
    """What is in such a file, for all scales; a plain table is a blend of itself."""
    if str(path) in families():
        path = configs.packaged(KIND) / f"{path}.json"
    data = files.read(Path(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        table = Tableau.from_dict(data, str(path))
        return {table.nfe: Blend((1.0,), (table,))}
    if data.get("version") != VERSION or not isinstance(data.get("tables"), dict):
        raise ValueError(f"{path}: schema {data.get('version')!r}; this fewstep reads {VERSION}")
    found = [read(each, f"{path}: table {nfe}") for nfe, each in data["tables"].items()]
    return {blend.nfe: blend for blend in found}


def read(data: Any, where: str) -> Blend:
    """Inverse of `written`, with validation."""
    if not isinstance(data, dict) or "guidance" not in data:
        return Blend((1.0,), (Tableau.from_dict(data, where),))
    scales, tables = data["guidance"], data.get("tables")
    if not isinstance(scales, list) or not isinstance(tables, list):
        raise ValueError(f"{where}: guidance and tables must be lists")
    made = (Tableau.from_dict(each, f"{where}, number {k}") for k, each in enumerate(tables))
    try:
        return Blend(tuple(map(float, scales)), tuple(made))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def within(tables: Mapping[int, Tableau], nfe: int) -> Tableau:
    """The table that takes the most evaluations within `nfe`; ValueError if all take more."""
    possible = [each for each in tables if each <= nfe]
    if not possible:
        known = ", ".join(map(str, tables))
        raise ValueError(f"there are tables of {known} evaluations, and none within {nfe}")
    return tables[max(possible)]
