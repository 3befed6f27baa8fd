"""What a training tells on the way: a line of JSON for every step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage import write_atomically

FILE = "metrics.jsonl"


class Journal:
    """The file `folder`/metrics.jsonl; a training that goes on writes over what comes after."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        kept = [json.dumps(entry) for entry in read(folder) if entry["step"] <= step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line; what is not finite is written as text, which JSON has no number for."""
        line = json.dumps({"step": step, **{k: finite(v) for k, v in values.items()}})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def finite(value: Any) -> Any:
    """A float that JSON can hold."""
    return repr(value) if isinstance(value, float) and value - value != 0 else value


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries of a journal; the last line of a killed run may be half written, and is left."""
    path = folder / FILE
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
