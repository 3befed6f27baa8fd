"""Files of a run: atomic writes, fingerprints, and what the machine was."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

PACKAGES = ("fewstep", "torch", "numpy", "scipy", "diffusers", "torchmetrics")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that an interruption leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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


def digest(*parts: Any) -> str:
    """16 hex digits of SHA-256 over arrays (dtype, shape, bytes) and JSON values, in order."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head = f"{part.dtype.str}{part.shape}"
            body = np.ascontiguousarray(part).tobytes()
        else:
            head, body = "json", json.dumps(part, sort_keys=True).encode()
        # The length keeps neighbours apart: ("ab", "c") is not ("a", "bc").
        sha.update(f"{head}:{len(body)}:".encode() + body)
    return sha.hexdigest()[:16]


def fingerprint(network: nn.Module, *more: Any) -> str:
    """Digest of a network's names and numbers, wherever it came from, and of JSON values."""
    state = sorted(network.state_dict().items())
    numbers = ((name, value.detach().cpu()) for name, value in state)
    # numpy has no bfloat16; its bits, unlike its values, are not those of a float32.
    arrays = (
        (name, (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy())
        for name, value in numbers
    )
    return digest(*(part for pair in arrays for part in pair), *more)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, for the records of a run."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": f"{device.type} ({kind})",
        "threads": str(torch.get_num_threads()),
        "platform": platform.system(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str:
    """The installed version of a distribution, "not installed" for a bare source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    """The processor as the system names it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
