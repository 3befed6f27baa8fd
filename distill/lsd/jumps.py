"""A jump table as parameters of a training, and the losses of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ...discrete import JumpTable, Kernel, LogScore, Noise, build, log_probability, record, start
from ...discrete.executor import transition
from ...discrete.kernel import closed

What = Literal["phi", "beta", "power", "times"]
WHAT: tuple[What, ...] = get_args(What)
# Kernel matrix [N, M] of sequences x [N, L] and y [M, L], int64.
TokenKernel = Callable[[Tensor, Tensor], Tensor]
# Of the length: how far two sequences may differ and still be like each other.
REACH = (0.075, 0.25, 0.75)
# The least probability of a token in the cost of a step.
RARE = 1e-4


class LearnedJumps(nn.Module):
    """A discrete solver with hazards, temperatures, powers and times to learn.

    Row n jumps with the hazards of `base` at the current times, of scores to the power e^power[n],
    multiplied by e^phi[n], and to tokens by h^beta with beta = e^beta[n]; gaps between times are
    shares of the whole, changed by factors e^times[n]. All are zero to begin with, which is `base`
    itself, and float64; only what `what` names is a parameter. Of Fu et al. 2025, "Learnable
    Sampler Distillation for Discrete Diffusion Models", LSD is phi as published and power in the
    released code, and LSD+ times.
    """

    def __init__(
        self,
        base: str,
        kernel: Kernel,
        noise: Noise,
        times: Tensor,
        what: Sequence[What] = ("phi", "beta"),
    ) -> None:
        super().__init__()
        self.base, self.kernel, self.noise, self.first = base, kernel, noise, times.double()
        for name in WHAT:
            value = torch.zeros(len(times) - 1 if name in what else 0, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))
        self.phi: nn.Parameter
        self.beta: nn.Parameter
        self.power: nn.Parameter
        self.times: nn.Parameter

    def nodes(self) -> Tensor:
        """The times, float64 [N + 1]; the first and the last stay."""
        if not self.times.numel():
            return self.first
        shares = torch.softmax((-torch.diff(self.first)).log() + self.times.cpu(), 0)
        inner = self.first[0] - (self.first[0] - self.first[-1]) * shares.cumsum(0)[:-1]
        return torch.cat([self.first[:1], inner, self.first[-1:]])

    def forward(self) -> JumpTable:
        """The table of this moment, with gradients, on the CPU as all tables."""
        table = build(self.base, self.kernel, self.noise, self.nodes())
        if self.phi.numel():
            table = table.scaled(self.phi.exp().cpu())
        if self.beta.numel():
            table = replace(table, beta=self.beta.exp().cpu())
        return replace(table, power=self.power.exp().cpu()) if self.power.numel() else table

    @torch.no_grad()
    def table(self) -> JumpTable:
        """The table of this moment in numbers."""
        return self().numeric()


def hamming(reach: Sequence[float] = REACH) -> TokenKernel:
    """Sum over r of exp(-H / (r L)), with H the number of places that differ."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        size, length = int(max(x.max(), y.max())) + 1, x.shape[1]
        a, b = (torch.nn.functional.one_hot(each, size).double().flatten(1) for each in (x, y))
        differ = length - a @ b.T
        return torch.stack([torch.exp(-differ / (r * length)) for r in reach]).sum(0)

    return kernel


def spectrum(n: int, states: int) -> TokenKernel:
    """The product of the counts of n-grams, each as a share of all in the sequence."""

    def counts(x: Tensor) -> Tensor:
        # Not by @, which CUDA has not for integers.
        grams = (x.unfold(1, n, 1) * states ** torch.arange(n, device=x.device)).sum(-1)
        found = torch.zeros(len(x), states**n, dtype=torch.float64, device=x.device)
        found.scatter_add_(1, grams, torch.ones_like(grams, dtype=torch.float64))
        return found / grams.shape[1]

    return lambda x, y: counts(x) @ counts(y).T


def score_weights(x: Tensor, y: Tensor, kernel: TokenKernel) -> Tensor:
    """w_a = 2 (mean_{b != a} k(x_a, x_b) - mean_b k(x_a, y_b)), float64 [N].

    The gradient of the squared discrepancy of a law from y is E[w_a d log P(x_a)]; without the pair
    of a sample with itself it is unbiased.
    """
    within = kernel(x, x)
    own = (within.sum(1) - within.diagonal()) / (len(x) - 1)
    return 2 * (own - kernel(x, y).mean(1))


def mmd_loss(
    table: JumpTable,
    log_score: LogScore,
    length: int,
    seeds: Sequence[int],
    real: Tensor,
    kernel: TokenKernel,
) -> Tensor:
    """A loss whose gradient is that of the discrepancy of the samples from `real` [M, L].

    By the score function (Williams 1992, "REINFORCE"), because nothing passes through a draw of
    tokens: mean of w_a log P(trajectory a), with weights centred and in units of their deviation.
    """
    x = start(table, length, seeds).to(real.device)
    run = record(log_score, table, x, seeds)
    weights = score_weights(run.states[-1], real, kernel)
    spread = weights.std().clamp(min=torch.finfo(weights.dtype).tiny)
    return ((weights - weights.mean()) / spread * log_probability(table, run).sum(0)).mean()


def path_loss(table: JumpTable, log_score: LogScore, states: Sequence[Tensor]) -> Tensor:
    """-log P of the steps of a teacher, whose states [B, L] at the table's nodes are given.

    The divergence of paths, up to a constant: a bound on that of the samples, and a loose one.
    """
    scores = {n: log_score(x, table.node(n)) for n, x in enumerate(states[:-1])}
    known = dict(enumerate(states))
    rows = [rarity(transition(table, n, known, scores), states[n + 1]) for n in range(table.nfe)]
    return torch.stack(rows).sum()


def score_loss(
    table: JumpTable,
    log_score: LogScore,
    factors: Tensor,
    teacher: Sequence[Tensor],
    x: Tensor,
    seeds: Sequence[int],
    *,
    logarithms: bool = False,
) -> Tensor:
    """Sum over rows of mean |s*_n - f_n s_n|^2: scores at a teacher's states, and at one's own.

    `teacher` are states [B, L] at the nodes, from x at the first or one near it; `factors` f are
    [N]. As published (Fu et al. 2025), where they multiply scores, or with `logarithms` as in the
    released code, where they multiply their logarithms. Each sees its own row alone: no gradient
    passes through the states. Where both runs part, s tells little of s*, and the best f is an
    attenuated regression E[s* s] / E[s^2], below 1 and near 0 in the end: converged it makes
    samples worse.
    """
    with torch.no_grad():
        own = record(log_score, table, x, seeds)
        theirs = [log_score(y, table.node(n)) for n, y in enumerate(teacher[: table.nfe])]
    total = factors.new_zeros(())
    for n, (mine, their) in enumerate(zip(own.log_scores, theirs, strict=True)):
        one, other = (
            (each if logarithms else each.exp()).masked_fill(closed(table.kernel, y), 0.0).double()
            for each, y in ((mine, own.states[n]), (their, teacher[n]))
        )
        total = total + (other - factors[n] * one).square().mean()
    return total


def relaxed(x: Tensor, share: float, states: int, seed: int) -> Tensor:
    """Sequences [B, L] with at most `share` of their places changed to other tokens at random.

    The relaxation of Fu et al. 2025: a student begins near the teacher's noise, not at it.
    """
    count = int(share * x.shape[1])
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(x.shape, generator=generator).argsort(1)[:, :count].to(x.device)
    tokens = torch.randint(states, places.shape, generator=generator).to(x.device)
    return x.scatter(1, places, tokens)


def best_times(
    kernel: Kernel,
    noise: Noise,
    times: Tensor,
    states: Sequence[Tensor],
    log_score: LogScore,
    nfe: int,
) -> Tensor:
    """The `nfe` + 1 of a teacher's times between which sites may best be drawn by themselves.

    The cost of a step from node i to j is -log P of the teacher's own steps from i to j if in each
    every site moved as though all others were where they were at i: all choices are judged by the
    same paths, so that the least sum has the least divergence of paths (Park et al. 2024, "Jump
    Your Steps"). It is found by dynamic programming.
    """
    total = len(times) - 1
    if not 1 <= nfe <= total:
        raise ValueError(f"a teacher of {total} steps has no {nfe} steps to choose")
    fine = build("tweedie", kernel, noise, times)
    cost = torch.full((total + 1, total + 1), torch.inf, dtype=torch.float64)
    for i in range(total):
        cost[i, i + 1 :] = parted_cost(fine, states, log_score, i)
    least = torch.full((nfe + 1, total + 1), torch.inf, dtype=torch.float64)
    least[0, 0] = 0.0
    came = torch.zeros((nfe + 1, total + 1), dtype=torch.long)
    for k in range(1, nfe + 1):
        least[k], came[k] = (least[k - 1][:, None] + cost).min(0)
    places = [total]
    for k in range(nfe, 0, -1):
        places.append(int(came[k, places[-1]]))
    return times[places[::-1]]


def parted_cost(
    table: JumpTable, states: Sequence[Tensor], log_score: LogScore, first: int
) -> Tensor:
    """-log P of the steps after `first`, each site by itself, up to every later node: float64."""
    start, x = table.node(first), states[first]
    own = ratios(log_score(x, start), x, table.kernel)
    costs = []
    for n in range(first, table.nfe):
        known = earlier(own, table.kernel, start.total - table.node(n).total)
        known = known / known.gather(-1, states[n][..., None])
        scores = {n: known[..., : table.kernel.states].log()}
        law = transition(table, n, {n: states[n]}, scores)
        costs.append(rarity(law, states[n + 1]))
    return torch.stack(costs).cumsum(0)


def rarity(law: Tensor, x: Tensor) -> Tensor:
    """The mean of -log P of sequences x [B, L] under the laws of their sites [B, L, V], float64.

    No token is rarer than `RARE`: what a law cannot explain is to have a price.
    """
    likely = law.gather(-1, x[..., None]).clamp(min=RARE)
    return -likely.double().log().sum((1, 2)).mean()


def ratios(log_s: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
    """p_t(v at a site) / p_t(x), float64 [B, L, vocabulary], from log scores; 1 for what is there.

    Of a token that stays for good nothing else is possible.
    """
    full = torch.zeros(*x.shape, kernel.vocabulary, dtype=torch.float64, device=x.device)
    full[..., : kernel.states] = log_s.double().exp().masked_fill(closed(kernel, x), 0.0)
    return full.scatter(-1, x[..., None], 1.0)


def earlier(ratio: Tensor, kernel: Kernel, total: Tensor) -> Tensor:
    """The ratios d = `total` earlier, if other sites stay: e^d r - (e^d - 1) prior sum r.

    The inverse of p -> e^-d p + (1 - e^-d) prior. What rounding makes negative is nothing.
    """
    law = kernel.law().to(ratio.device)
    less = total.exp() * ratio - torch.expm1(total) * law * ratio.sum(-1, keepdim=True)
    return less.clamp(min=torch.finfo(torch.float64).tiny)
