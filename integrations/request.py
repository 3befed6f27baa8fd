"""What a run is asked for, and what of its config is asked everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Config = Mapping[str, Any]

# The kinds of noise levels: a table, a flow, sigmas of EDM, and the angles of IPNDM.
Law = Literal["table", "flow", "edm", "ipndm"]


@dataclass(frozen=True)
class Request:
    """What `set_timesteps` is asked for: a number of steps, or the nodes themselves.

    `mu` is the logarithm of a flow's shift (the shift itself if `time_shift_type` is "linear").
    """

    steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.sigmas is None and self.timesteps is None:
            raise ValueError("set_timesteps: give num_inference_steps, sigmas or timesteps")
        given = self.given
        if min(given.values()) < 1:
            raise ValueError(f"set_timesteps: at least 1 step is needed, got {given}")
        if len(set(given.values())) > 1:
            raise ValueError(f"set_timesteps: these ask for different numbers of steps: {given}")

    @property
    def given(self) -> dict[str, int]:
        """What was given, and how many steps each asks for; a zero that closes sigmas is none."""
        counts = {
            "num_inference_steps": None if self.steps is None else int(self.steps),
            "timesteps": None if self.timesteps is None else len(self.timesteps),
            "sigmas": None if self.sigmas is None else len(open_ended(self.sigmas)),
        }
        return {name: count for name, count in counts.items() if count is not None}

    @property
    def count(self) -> int:
        """The number of steps."""
        return next(iter(self.given.values()))

    def is_open(self, law: Law) -> bool:
        """Whether nobody chose the nodes: flow pipelines pass an even ramp from 1 to 1 / n then."""
        if law != "flow" or self.timesteps is not None:
            return self.sigmas is None and self.timesteps is None
        n = self.count
        return self.sigmas is None or bool(
            np.allclose(open_ended(self.sigmas), np.linspace(1, 1 / n, n))
        )

    def refuse(self, who: str, *names: str) -> None:
        """Raise ValueError if nodes are given by one of `names`, which `who` has no use for."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"set_timesteps: {who} places its nodes itself, without {name}")


def open_ended(sigmas: Sequence[float]) -> Sequence[float]:
    """Sigmas without the zero that may close them."""
    return sigmas[:-1] if len(sigmas) and sigmas[-1] == 0 else sigmas


def replaces_method(config: Config) -> bool:
    """Whether a named solver or a table takes the place of what a class does."""
    return config.get("solver") is not None or config.get("tableau") is not None
