"""The jump table: a discrete sampler as rows of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..samplers.files import read
from ..storage import write_json
from . import files
from .kernel import Kernel
from .noise import Noise

Law = Literal["linear", "exponential", "single"]
LAWS: tuple[Law, ...] = get_args(Law)


@dataclass(frozen=True, slots=True)
class Node:
    """Where the network is asked: `index`, `time` and `total` noise (float64, no dimensions)."""

    index: int
    time: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class JumpTable:
    """Rows of hazards: row n lets every site jump from x[anchor[n]] to a token v.

        h_v = ( sum_k weights[n,k] q_k s_k(v)  -  sum_k spread[n,k] q_k mean_v s_k )_+

    are the hazards, with s_k the score at the k-th state, raised to power[k] (1 unless given), and
    q_k = prior(its token) (see `kernel`); there is none towards the token that is there. Of the
    total H = sum_v h_v `law[n]` makes the probability of a jump, min(H, 1) ("linear"), 1 - e^-H
    ("exponential") or H e^-H ("single": two jumps are none), and a jump goes to v with a
    probability proportional to h_v^beta[n].

    `time` is float64 [N + 1], descending; N is the number of network evaluations. If it ends at 0,
    its last node is clean data, whatever total noise the law of `noise` has left there, and a mask
    has to jump in the last row. `weights` and `spread` are float64 [N, N], lower triangular,
    `beta` [N] (1 unless given), `anchor` [N] (n unless given: earlier for second stages), `law` one
    word or N. Tensors that require gradients keep them: everything that a table does is
    differentiable in its numbers. An entry that is exactly 0 stands for a score that is not used.

    Raises ValueError naming the row for a wrong shape, a value that is not finite, an entry above
    the diagonal, times that do not descend or a beta that is not positive.
    """

    kernel: Kernel
    noise: Noise
    time: Tensor
    weights: Tensor
    spread: Tensor = field(default_factory=lambda: torch.zeros(0))
    beta: Tensor = field(default_factory=lambda: torch.zeros(0))
    power: Tensor = field(default_factory=lambda: torch.zeros(0))
    anchor: tuple[int, ...] = ()
    law: Law | Sequence[Law] = "linear"
    name: str = "custom"
    meta: Mapping[str, Any] = field(default_factory=dict)
    # For each row, the states before it whose scores it uses, and those that later rows still need.
    uses: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    live: tuple[tuple[int, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "time", checked(self.time, None, f"jump table {self.name}: time"))
        n = self.time.shape[0] - 1
        for what, size in (
            *(("weights", (n, n)), ("spread", (n, n))),
            *(("beta", (n,)), ("power", (n,))),
        ):
            given = getattr(self, what)
            if what != "weights" and torch.as_tensor(given).numel() == 0:
                given = torch.full(size, float(what != "spread"))
            put(self, what, checked(given, size, f"jump table {self.name}: {what}"))
        put(self, "anchor", tuple(self.anchor) or tuple(range(n)))
        put(self, "law", (self.law,) * n if isinstance(self.law, str) else tuple(self.law))
        put(self, "meta", dict(self.meta))
        self._refuse()
        used = (self.weights.detach() != 0) | (self.spread.detach() != 0)
        uses = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in used)
        put(self, "uses", uses)
        wanted = [{self.anchor[k], *uses[k]} for k in range(n)]
        after = [set[int]().union(*wanted[k + 1 :]) for k in range(n)]
        put(self, "live", tuple(tuple(sorted(i for i in a if i <= k)) for k, a in enumerate(after)))

    def _refuse(self) -> None:
        """Raise for what no table may be."""
        n, time, where = self.nfe, self.time.detach(), f"jump table {self.name}"
        steps = time[1:] >= time[:-1]
        if steps.any():
            k = int(steps.int().argmax())
            raise ValueError(
                f"{where}: times must descend, but node {k} is at {time[k]:g} and node {k + 1} at "
                f"{time[k + 1]:g}"
            )
        if time[0] > 1 or time[-1] < 0:
            raise ValueError(f"{where}: times must lie in [0, 1], got {time[0]:g} to {time[-1]:g}")
        for what in ("weights", "spread"):
            above = torch.triu(getattr(self, what).detach(), 1) != 0
            if above.any():
                row, k = above.nonzero()[0].tolist()
                raise ValueError(
                    f"{where}: {what} row {row} uses score {k}, which does not exist yet at that "
                    "row (the table must be lower triangular)"
                )
        for what in ("beta", "power"):
            value = getattr(self, what).detach()
            if (value <= 0).any():
                row = int((value <= 0).int().argmax())
                raise ValueError(f"{where}: {what} must be positive, row {row} has {value[row]:g}")
        if len(self.anchor) != n or len(self.law) != n:
            raise ValueError(
                f"{where}: {len(self.anchor)} anchors and {len(self.law)} laws for {n} rows"
            )
        for row, (anchor, law) in enumerate(zip(self.anchor, self.law, strict=True)):
            if not 0 <= anchor <= row:
                raise ValueError(f"{where}: row {row} cannot jump from state {anchor}")
            if law not in LAWS:
                raise ValueError(f"{where}: law {law!r} of row {row} is not one of {LAWS}")

    @property
    def nfe(self) -> int:
        """Network evaluations: one for each row."""
        return self.time.shape[0] - 1

    @property
    def clean(self) -> bool:
        """Whether the last row ends at clean data."""
        return bool(self.time[-1] == 0)

    def node(self, n: int) -> Node:
        """Node n, for n < N."""
        return Node(n, self.time[n], self.noise.total(self.time[n]))

    def scaled(self, phi: Tensor) -> JumpTable:
        """The table with the hazards of row n multiplied by phi[n] > 0 (its total included)."""
        phi = checked(phi, (self.nfe,), f"jump table {self.name}: phi")[:, None]
        if (phi <= 0).any():
            raise ValueError(f"jump table {self.name}: phi must be positive, got {phi.min():g}")
        return replace(self, weights=phi * self.weights, spread=phi * self.spread)

    def renamed(self, name: str, **meta: Any) -> JumpTable:
        """The same table under another name, with `meta` added to what it already says."""
        return replace(self, name=name, meta={**self.meta, **meta})

    def numeric(self) -> JumpTable:
        """The table without gradients, on the CPU."""
        names = ("time", "weights", "spread", "beta", "power")
        return replace(self, **{name: getattr(self, name).detach().cpu() for name in names})

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        table = self.numeric()
        return files.to_dict({name: getattr(table, name) for name in files.FIELDS})

    @classmethod
    def from_dict(cls, data: Any, where: str = "jump table") -> JumpTable:
        """Inverse of `to_dict`, with validation."""
        return cls(**files.from_dict(data, where))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON (schema `fewstep.jumps`, version 1), atomically."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> JumpTable:
        """Read a table that `save` wrote; ValueError says what is wrong with a bad file."""
        return cls.from_dict(read(Path(path)), where=str(path))

    def __repr__(self) -> str:
        return f"JumpTable({self.name!r}, nfe={self.nfe}, kernel={self.kernel})"


def checked(value: Any, size: tuple[int, ...] | None, label: str) -> Tensor:
    """A float64 tensor of that size (None: [N + 1] with N >= 1), its own copy unless it learns."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if size is None and (tensor.ndim != 1 or len(tensor) < 2):
        raise ValueError(f"{label} must be [N + 1] with at least one step, not {[*tensor.shape]}")
    if size is not None and tuple(tensor.shape) != size:
        raise ValueError(f"{label} has shape {[*tensor.shape]}, not {[*size]}")
    bad = ~torch.isfinite(tensor.detach()).reshape(len(tensor), -1).all(1)
    if bad.any():
        raise ValueError(f"{label} row {int(bad.int().argmax())} is not finite")
    return tensor if tensor.requires_grad else tensor.clone()
