"""The one executor: a row of a jump table is one law for every site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers.streams import uniform
from .kernel import closed, draw, prior
from .table import JumpTable, Node

# (tokens x [B, L], node) -> log s [B, L, states]; the entry of the token that is there is ignored.
LogScore = Callable[[Tensor, Node], Tensor]

# Larger log scores are not told apart: float32 cannot hold their sum.
LARGEST = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """A recorded run: `states` x[0] to x[N], int64 [B, L], and the `log_scores` of the first N."""

    states: tuple[Tensor, ...]
    log_scores: tuple[Tensor, ...]


def start(table: JumpTable, length: int, seeds: Sequence[int]) -> Tensor:
    """Pure noise for node 0, int64 [len(seeds), length], one random stream per sample."""
    return prior(table.kernel, uniform(seeds, 0, torch.empty(len(seeds), length)))


def sample(log_score: LogScore, table: JumpTable, x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Run a whole table from x, int64 [B, L] at node 0, and return the final state.

    Parameters
    ----------
    log_score
        Any callable (x, node) -> log s [B, L, states]; see `scores`. Called once for each row.
    table
        The sampler; see `solvers.build`.
    x
        The state at node 0; see `start`.
    seeds
        One random stream per sample: the result does not depend on the batch.
    """
    for _, _, after in walk(log_score, table, x, seeds):
        x = after
    return x


def record(log_score: LogScore, table: JumpTable, x: Tensor, seeds: Sequence[int]) -> Trajectory:
    """Run as `sample` does, and keep all states and log scores."""
    states, log_scores = [x], []
    for _, log_s, after in walk(log_score, table, x, seeds):
        log_scores.append(log_s)
        states.append(after)
    return Trajectory(tuple(states), tuple(log_scores))


def walk(
    log_score: LogScore, table: JumpTable, x: Tensor, seeds: Sequence[int]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (n, log score of state n, state n + 1) for every row."""
    if x.ndim != 2 or x.is_floating_point():
        raise ValueError(f"the state must be tokens [B, L], got {x.dtype} {[*x.shape]}")
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < table.kernel.vocabulary:
        raise ValueError(
            f"tokens must be in 0 to {table.kernel.vocabulary - 1} for {table.kernel}, got "
            f"{int(x.min())} to {int(x.max())}"
        )
    states, scores = {0: x}, dict[int, Tensor]()
    for n in range(table.nfe):
        log_s = scores[n] = log_score(states[n], table.node(n))
        wanted = (*x.shape, table.kernel.states)
        if tuple(log_s.shape) != wanted:
            raise ValueError(f"the log score has shape {[*log_s.shape]}, expected {[*wanted]}")
        law = transition(table, n, states, scores)
        after = draw(law, uniform(seeds, n + 1, x))
        states = {k: states[k] for k in table.live[n]} | {n + 1: after}
        scores = {k: scores[k] for k in table.live[n]}
        yield n, log_s, after


def log_probability(table: JumpTable, run: Trajectory) -> Tensor:
    """The log probability of each step of a recorded run, [N, B]; sum over the rows for all.

    Differentiable in the numbers of the table, with the states and scores as they were recorded:
    what score-function gradients (REINFORCE) need. -inf for a step that the table cannot make.
    """
    states, scores = dict(enumerate(run.states)), dict(enumerate(run.log_scores))
    rows = []
    for n in range(table.nfe):
        law = transition(table, n, states, scores)
        rows.append(law.gather(-1, states[n + 1][..., None])[..., 0].log().sum(-1))
    return torch.stack(rows)


def transition(
    table: JumpTable, n: int, states: Mapping[int, Tensor], log_scores: Mapping[int, Tensor]
) -> Tensor:
    """The law of every site after row n, [B, L, vocabulary], in float32 at least.

    `states` [B, L] and `log_scores` [B, L, states] by their index: those that the row uses, and its
    anchor. Rows are >= 0 and sum to 1 for any hazard. A mask that has to become clean without any
    hazard to go by becomes any token, all alike.
    """
    x, h = states[table.anchor[n]], hazards(table, n, states, log_scores)
    jump, stay = split(table.law[n], h.sum(-1))
    if table.clean and n == table.nfe - 1:
        masked = x >= table.kernel.states
        jump, stay = jump.masked_fill(masked, 1.0), stay.masked_fill(masked, 0.0)
    law = jump[..., None] * tempered(h, table.beta[n])
    law = torch.nn.functional.pad(law, (0, table.kernel.vocabulary - table.kernel.states))
    return law.scatter_add(-1, x[..., None], stay[..., None])


def hazards(
    table: JumpTable, n: int, states: Mapping[int, Tensor], log_scores: Mapping[int, Tensor]
) -> Tensor:
    """The hazards h of row n, [B, L, states]; see `JumpTable`."""
    anchor = states[table.anchor[n]]
    law = table.kernel.law().to(anchor.device)
    wide = torch.promote_types(log_scores[n].dtype, torch.float32)
    tokens = torch.arange(table.kernel.states, device=anchor.device)
    total = torch.zeros(log_scores[n].shape, dtype=wide, device=anchor.device)
    for k in table.uses[n]:
        here = states[k][..., None] == tokens
        # Finite, so that the gradient of a power is, where a score is 0.
        finite = log_scores[k].to(wide).clamp(min=-LARGEST * LARGEST)
        log_s = (table.power[k].to(wide) * finite).clamp(max=LARGEST).masked_fill(here, 0.0)
        weight, spread = table.weights[n, k], table.spread[n, k]
        # weight s - spread mean(s), without the cancellation of two large numbers.
        push = (weight - spread) * log_s.exp()
        if spread.detach() != 0:
            excess = torch.expm1(log_s)
            push = push + spread * (excess - excess.mean(-1, keepdim=True))
        total = total + law[states[k]][..., None].to(wide) * push.masked_fill(here, 0.0)
    return total.masked_fill(closed(table.kernel, anchor), 0.0).clamp(min=0)


def split(law: str, hazard: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities that a site jumps and that it stays, from its total hazard."""
    if law == "linear":
        jump = hazard.clamp(max=1)
        return jump, 1 - jump
    if law == "exponential":
        return -torch.expm1(-hazard), torch.exp(-hazard)
    jump = hazard * torch.exp(-hazard)
    return jump, 1 - jump


def tempered(h: Tensor, beta: Tensor) -> Tensor:
    """h^beta normalised over the last axis, the uniform law where all h are 0."""
    some = h > 0
    logits = beta * torch.where(some, h, 1).log()
    top = torch.where(some, logits, -torch.inf).amax(-1, keepdim=True).detach()
    top = torch.where(top.isfinite(), top, 0)
    # Gradients stay finite, because what is left out is 1 before and not inf.
    powers = torch.where(some, torch.where(some, logits - top, 0).exp(), 0)
    powers = torch.where(some.any(-1, keepdim=True), powers, 1)
    return powers / powers.sum(-1, keepdim=True)
