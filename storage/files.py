"""Files that are never half written, and JSON and arrays in them."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all went well.

    An interruption leaves the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically; NaN is refused."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_arrays(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and the key of what they were computed from as one npz file, atomically."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {**arrays, "key": np.asarray(key)}
    np.savez(buffer, **named)
    write_atomically(path, buffer.getvalue())


def read_arrays(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays in a file of `write_arrays`; None if absent, damaged or of another key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            # numpy reads as far as an array's header says, and the checksum is at the end.
            if file.zip.testzip() is not None:
                return None
            arrays = dict(file)
    # RuntimeError: flipped bits that seem to say "encrypted", or "compressed in another way".
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays if str(arrays.pop("key", "")) == key else None
