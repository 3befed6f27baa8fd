"""The one executor: a step is one weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..schedules.grid import Node
from .program import Step
from .recall import FRESH, STREAMS, Denoiser, Memory, recall_of
from .streams import standard_normal
from .sums import check_fits, combine, mix
from .tableau import Tableau

StateHook = Callable[[Tensor, Node], Tensor]
TimeMap = Callable[[Tensor, Node], Node]
NoiseSource = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A run between two steps, as a value: nothing else is needed to go on.

    `x` [B, ...] is the state at node `step`; `outputs` and `noises` are those that later rows
    still use, like-shaped, and `live` and `live_noises` say which they are; `seeds` are the random
    streams, one per sample (empty for a deterministic table); `memory` is what hooks and
    denoisers remember of each sample, [B, ...] on any device.
    """

    x: Tensor
    step: int = 0
    outputs: tuple[Tensor, ...] = ()
    noises: tuple[Tensor, ...] = ()
    live: tuple[int, ...] = ()
    live_noises: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    memory: Memory = field(default_factory=dict)

    def take(self, index: Sequence[int]) -> State:
        """The samples `index`, in that order and possibly repeated, each with its own stream.

        What else you hold per sample (the labels of a network, per-sample coefficients of a table)
        has to be indexed alongside.
        """
        size = len(self.x)
        bad = [i for i in index if isinstance(i, bool) or not -size <= i < size]
        if bad:
            raise ValueError(f"take: {bad[0]!r} is no index into {size} samples")
        rows = torch.tensor(index, dtype=torch.long, device=self.x.device)
        return replace(
            self,
            x=self.x[rows],
            outputs=tuple(m[rows] for m in self.outputs),
            noises=tuple(z[rows] for z in self.noises),
            seeds=tuple(self.seeds[i] for i in index) if self.seeds else (),
            memory={name: each[rows.to(each.device)] for name, each in self.memory.items()},
        )

    def repeat(self, n: int) -> State:
        """Every sample n times in a row; copies share a stream until `reseed` parts them."""
        return self.take([i for i in range(len(self.x)) for _ in range(n)])

    def reseed(self, seeds: Sequence[int]) -> State:
        """The same state with other streams for the noise still to be drawn, by denoisers too."""
        if len(seeds) != len(self.x):
            raise ValueError(f"{len(seeds)} seeds for a batch of {len(self.x)}")
        fresh = tuple(int(seed) for seed in seeds)
        if STREAMS not in self.memory:
            return replace(self, seeds=fresh)
        streams = torch.tensor([seed % 2**63 for seed in fresh])
        return replace(self, seeds=fresh, memory={**self.memory, STREAMS: streams})


def joined(states: Sequence[State]) -> State:
    """States at one step of one table as one batch, in their order; ValueError for others.

    What is remembered of some of them only is zero for the others.
    """
    first = states[0]
    if len(states) == 1:
        return first
    shared = {(each.step, each.live, each.live_noises) for each in states}
    if len(shared) > 1:
        raise ValueError("joined: these states are not at one step of one table")
    return replace(
        first,
        x=torch.cat([each.x for each in states]),
        outputs=tuple(torch.cat(each) for each in zip(*(s.outputs for s in states), strict=True)),
        noises=tuple(torch.cat(each) for each in zip(*(s.noises for s in states), strict=True)),
        seeds=tuple([seed for each in states for seed in each.seeds]),
        memory=remembered(states),
    )


def remembered(states: Sequence[State]) -> Memory:
    """The memories of several states as that of one batch."""
    like = {name: each for state in states for name, each in state.memory.items()}

    def of(state: State, name: str) -> Tensor:
        found = state.memory.get(name)
        shape = (len(state.x), *like[name].shape[1:])
        return like[name].new_zeros(shape) if found is None else found

    return {name: torch.cat([of(state, name) for state in states]) for name in like}


def anew(outputs: tuple[Tensor, ...], fresh: Tensor) -> tuple[Tensor, ...]:
    """Outputs of which, for the samples where `fresh` is true, all are the newest one.

    Rows are exact for constant outputs, so that the next step is then one of first order (DDIM's,
    without noise), whatever the row.
    """
    newest = outputs[-1]
    rows = fresh.to(newest.device).view(-1, *[1] * (newest.ndim - 1))
    return tuple(torch.where(rows, newest, each) for each in outputs)


# What is run in place of a row at this state, which comes back with what is remembered of it.
RowMap = Callable[[State, Step], tuple[State, Step]]


def initial(table: Tableau, x: Tensor, seeds: Sequence[int] | None = None) -> State:
    """The state before the first step: x [B, ...] at node 0, kept in float32 at least.

    `seeds` are for tables that draw noise, one per sample; None takes them from torch's global
    generator, so that `torch.manual_seed` decides. An empty list leaves the noise to the `noise`
    hook. Raises ValueError for a state that is no floating-point tensor, or that the
    table's images are not for.
    """
    if not x.is_floating_point():
        raise ValueError(f"the state must be a floating-point tensor, got {x.dtype}")
    for shape in table.images:
        check_fits(shape, x)
    state = State(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    if not table.stochastic or (seeds is not None and len(seeds) == 0):
        return state
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (len(x),)).tolist()
    return state.reseed(seeds)


def advance(
    state: State,
    denoiser: Denoiser,
    table: Tableau,
    steps: int = 1,
    *,
    row_map: RowMap | None = None,
    time_map: TimeMap | None = None,
    on_state: StateHook | None = None,
    callback: Callable[[State, Tensor | None], Any] | None = None,
    noise: NoiseSource | None = None,
) -> State:
    """Run `steps` rows of the table (fewer at its end) and return the new state.

    Hooks are those of `sample`.
    """
    x, outputs, noises, n = state.x, state.outputs, state.noises, state.step
    memory, recall = state.memory, recall_of(denoiser)
    rows, seen = table.steps, row_map is not None or callback is not None
    if steps < 0 or not 0 <= n <= len(rows):
        raise ValueError(f"cannot run {steps} steps from step {n} of {table!r}")
    before = rows[n - 1] if n else None
    if before is not None and (before.live, before.live_noise) != (state.live, state.live_noises):
        raise ValueError(
            f"the state comes from another table: at step {n} it holds outputs {state.live}, "
            f"{table!r} needs {before.live}"
        )
    end = min(n + steps, len(rows))
    for row in rows[n:end]:
        if row_map is not None:
            state, row = row_map(state, row)
            x, outputs, noises = state.x, state.outputs, state.noises
            memory = state.memory
        x0 = None
        if row.call:
            node = row.node if time_map is None else time_map(x, row.node)
            if recall is None:
                x0 = denoiser(x, node)
            else:
                x0, memory = recall(x, node, memory)
            if x0.dtype != x.dtype:
                x0 = x0.to(x.dtype)
            if x0.shape != x.shape:
                raise ValueError(
                    f"the denoiser returned shape {tuple(x0.shape)} for a state {tuple(x.shape)}"
                )
            outputs = (*outputs, mix(x, row.of_x, x0, row.of_x0))
            if FRESH in memory:
                outputs = anew(outputs, memory[FRESH])
                memory = {name: each for name, each in memory.items() if name != FRESH}
        if row.draws:
            k = row.node.index
            z = noise(k, x) if noise is not None else standard_normal(state.seeds, k, x)
            noises = (*noises, z)
        n += 1
        x = combine(row, x, outputs, noises)
        if on_state is not None and not table.grid.stage[n]:
            x = on_state(x, table.grid.nodes[n])
        outputs = tuple([outputs[i] for i in row.keep])
        noises = tuple([noises[i] for i in row.keep_noise])
        # Made where someone sees it: it costs as much as a fifth of a small step.
        if seen or n == end:
            state = State(x, n, outputs, noises, row.live, row.live_noise, state.seeds, memory)
        if callback is not None:
            callback(state, x0)
    return state


def sample(
    denoiser: Denoiser,
    table: Tableau,
    x: Tensor,
    *,
    seeds: Sequence[int] | None = None,
    start: StateHook | None = None,
    row_map: RowMap | None = None,
    time_map: TimeMap | None = None,
    on_state: StateHook | None = None,
    callback: Callable[[State, Tensor | None], Any] | None = None,
    noise: NoiseSource | None = None,
) -> Tensor:
    """Sample: run a whole table from x, a state at node 0, and return the final state.

    x[n+1] = carry[n] x[n] + sum_k weights[n,k] m[k] + sum_k noise[n,k] z[k], with
    m[n] = denoiser(x[n], node n) brought into the table's basis.

    Parameters
    ----------
    denoiser
        Any callable (x, node) -> x0, like-shaped; see `denoiser`.
    table
        The sampler; see `build`.
    x
        The state at node 0, [B, ...]; see `noise`. float16 and bfloat16 are raised to float32, and
        outputs of any dtype are brought to the state's.
    seeds
        One random stream per sample, for tables that draw noise (see `initial`).
    start
        (x, node 0) -> x, applied once before the first step.
    row_map
        (state, row) -> state, row, called before every row: what is run instead, and on what. The
        row may have coefficients and a node for each sample (see `several`), and must keep what
        the table's row keeps; what it needs to know of earlier rows is in `state.memory`.
    time_map
        (x, node) -> node that the denoiser is given instead; the row keeps its own levels.
    on_state
        (x, node) -> x, applied to every new state that is not a stage inside a step.
    callback
        Called as callback(state, x0) after every row; x0 is None where no network was asked.
    noise
        (k, x) -> z[k] like x, instead of the streams.

    Returns
    -------
    Tensor
        The state at the last node. Gradients flow to x, the denoiser and a table of tensors.
    """
    state = initial(table, x, seeds if noise is None else ())
    if start is not None:
        state = replace(state, x=start(state.x, table.grid.nodes[0]))
    return advance(
        state,
        denoiser,
        table,
        table.grid.nfe,
        row_map=row_map,
        time_map=time_map,
        on_state=on_state,
        callback=callback,
        noise=noise,
    ).x
