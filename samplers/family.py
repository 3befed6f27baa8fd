"""Several tables in one file, by the network evaluations that they take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .. import configs
from ..storage import write_json
from . import files
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


def save_family(tables: Mapping[int, Tableau], path: str | Path) -> None:
    """Write tables by their NFE as JSON (schema `fewstep.family`, version 1), atomically."""
    wrong = [nfe for nfe, table in tables.items() if table.nfe != nfe]
    if wrong:
        raise ValueError(f"the table under {wrong[0]} takes {tables[wrong[0]].nfe} evaluations")
    data = {str(nfe): tables[nfe].to_dict() for nfe in sorted(tables)}
    write_json(Path(path), {"format": FORMAT, "version": VERSION, "tables": data})


def load_family(path: str | Path) -> dict[int, Tableau]:
    """The tables of a file of `save_family`, or the one of a file of `Tableau.save`, by NFE.

    `path` may be the name of one of `families`. Raises ValueError that says what is wrong with a
    bad file.
    """
    if str(path) in families():
        path = configs.packaged(KIND) / f"{path}.json"
    data = files.read(Path(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        table = Tableau.from_dict(data, str(path))
        return {table.nfe: table}
    if data.get("version") != VERSION or not isinstance(data.get("tables"), dict):
        raise ValueError(f"{path}: schema {data.get('version')!r}; this fewstep reads {VERSION}")
    found = {
        nfe: Tableau.from_dict(each, f"{path}: table {nfe}") for nfe, each in data["tables"].items()
    }
    return {table.nfe: table for table in found.values()}


def within(tables: Mapping[int, Tableau], nfe: int) -> Tableau:
    """The table that takes the most evaluations within `nfe`; ValueError if all take more."""
    possible = [each for each in tables if each <= nfe]
    if not possible:
        known = ", ".join(map(str, tables))
        raise ValueError(f"there are tables of {known} evaluations, and none within {nfe}")
    return tables[max(possible)]
