"""Numbers in full float32, whatever the caller allows for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """No autocast and no TF32 inside: both move features by more than samplers differ."""
    switches = tf32_switches()
    before = [getattr(place, name) for place, name, _ in switches]
    try:
        for place, name, off in switches:
            setattr(place, name, off)
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)


def tf32_switches() -> list[tuple[Any, str, Any]]:
    """The settings that allow TF32, as (where, name, the value that does not).

    torch has them twice, and refuses to read the older ones where somebody has set the newer.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    older = [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    try:
        for place, name, _ in older:
            getattr(place, name)
    except RuntimeError:
        conv = cudnn.conv  # type: ignore[attr-defined]
        return [(conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    return older
