"""Run settings by name: finding, reading and checking the YAML files of this folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def find(kind: str, name: str) -> Path:
    """The packaged `configs/<kind>/<name>.yaml`, or the file `name` itself if it is a path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = Path(str(files(__name__) / kind))
    found = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in found:
        raise ValueError(
            f"no configuration {name!r}; there is {', '.join(found)}, or give a .yaml file"
        )
    return folder / f"{name}.yaml"


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError if there is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold `key: value` lines")
    return value


def checked(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """`model(**values)`, with pydantic's findings as one readable ValueError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(lines)) from error
