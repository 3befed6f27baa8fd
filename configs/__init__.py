"""Run settings by name: finding, reading and checking the YAML files of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)


def find(kind: str, name: str) -> Path:
    """The packaged `configs/<kind>/<name>.yaml`, or the file `name` itself if it is a path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in names(kind):
        raise ValueError(
            f"no configuration {name!r}; there is {', '.join(names(kind))}, or give a .yaml file"
        )
    return packaged(kind) / f"{name}.yaml"


def names(kind: str) -> list[str]:
    """The names of the packaged files of a kind."""
    return sorted(path.stem for path in packaged(kind).glob("*.yaml"))


def packaged(kind: str) -> Path:
    """The folder of the packaged files of a kind."""
    return Path(str(files(__name__) / kind))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError if there is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold `key: value` lines")
    return value


def checked(model: type[Model], values: Any, where: str) -> Model:
    """`values` as a model, with pydantic's findings as one readable ValueError."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [explained(model, found["loc"], found) for found in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(lines)) from error


def explained(model: type[BaseModel], place: Sequence[str | int], found: Mapping[str, Any]) -> str:
    """One finding of pydantic in a line; of an unknown key, which ones there are."""
    said = f"{'.'.join(map(str, place))}: {found['msg'].removeprefix('Value error, ')}"
    if found["type"] != "extra_forbidden":
        return said
    keys = keys_at(model, place[:-1])
    inside = {sub: key for key in keys for sub in keys_at(model, [*place[:-1], key])}
    near = get_close_matches(str(place[-1]), [*keys, *inside], 1)
    hint = f"there is {', '.join(keys)}"
    if near:
        hint = f"did you mean {near[0]}"
        hint += "?" if near[0] in keys else f" (of {inside[near[0]]})?"
    return f"{'.'.join(map(str, place))}: no such key; {hint}" if keys else said


def keys_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The keys of the model that a path of keys and indices leads to, through lists and unions."""
    kinds: list[type[BaseModel]] = [model]
    for step in place:
        if isinstance(step, str):
            fields = [kind.model_fields[step] for kind in kinds if step in kind.model_fields]
            kinds = [part for each in fields for part in models_in(each)]
    return [key for kind in kinds for key in kind.model_fields]


def models_in(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that a field, or what it is a list of, may hold."""
    todo, found = [field.annotation], []
    while todo:
        kind = todo.pop()
        todo += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
    return found
