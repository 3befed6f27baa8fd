"""What identifies arrays, settings and networks: digests of their content."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import nn


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
