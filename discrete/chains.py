"""Markov chains over tokens: data whose scores, posteriors and sampled laws are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import scores
from .executor import LogScore
from .kernel import Kernel, Uniform, draw, matrix
from .noise import Time
from .table import Node, checked

# What enumeration may cost.
MOST = 4096


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """p(x) = initial[x_1] prod_i transition[x_i, x_i+1], for sequences of `length` tokens.

    `initial` is float64 [S] and `transition` [S, S]; laws that do not sum to 1 are refused.
    """

    initial: Tensor
    transition: Tensor
    length: int

    def __post_init__(self) -> None:
        s = len(self.initial)
        for name, size in (("initial", (s,)), ("transition", (s, s))):
            law = checked(getattr(self, name), size, f"chain: {name}")
            off = (law.sum(-1) - 1).abs().max()
            if (law < 0).any() or off > 1e-9:
                raise ValueError(f"chain: {name} must hold probabilities that sum to 1")
            object.__setattr__(self, name, law)
        if s < 2 or self.length < 1:
            raise ValueError(f"chain: {s} tokens and length {self.length}; need 2 and 1 at least")

    @property
    def states(self) -> int:
        """How many tokens there are."""
        return len(self.initial)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Sequences, int64 [n, length]."""
        u = torch.rand((self.length, n), generator=generator, dtype=torch.float64)
        x = [draw(self.initial.expand(n, -1), u[0])]
        for row in u[1:]:
            x.append(draw(self.transition[x[-1]], row))
        return torch.stack(x, 1)

    def log_probability(self, x: Tensor) -> Tensor:
        """log p of sequences [..., length], in nats; -inf for what never comes."""
        steps = self.transition[x[..., :-1], x[..., 1:]].log().sum(-1)
        return self.initial[x[..., 0]].log() + steps

    def law(self) -> Tensor:
        """p of all sequences, float64 [S^length], in the order of `sequences`."""
        return self.log_probability(sequences(self.states, self.length)).exp()

    def noised_law(self, kernel: Kernel, total: Time) -> Tensor:
        """p_t of all noised sequences, [vocabulary^length], by summing over all clean ones."""
        law, site = self.law().reshape([self.states] * self.length), matrix(kernel, total)
        for _ in range(self.length):
            # The first site goes, and comes back noised as the last.
            law = torch.tensordot(law, site, dims=([0], [0]))
        return law.reshape(-1)

    def rest(self, kernel: Kernel, x: Tensor, total: Time) -> Tensor:
        """log p(x0_i | all other sites of x), [B, length, S], by forward-backward in O(length S^2).

        A site that the others make impossible gets the law of what is compatible with one side.
        """
        seen = matrix(kernel, total).T[x]
        left, right = [self.initial.expand(len(x), -1)], [torch.ones_like(seen[:, 0])]
        for i in range(self.length - 1):
            left.append(shares(left[-1] * seen[:, i]) @ self.transition)
            right.append(shares(right[-1] * seen[:, -1 - i]) @ self.transition.T)
        return shares(torch.stack(left, 1) * torch.stack(right[::-1], 1)).log()

    def log_score(self, kernel: Kernel) -> LogScore:
        """The exact log score of the noised chain."""

        def log_score(x: Tensor, node: Node) -> Tensor:
            log_rest = self.rest(kernel, x, node.total)
            if isinstance(kernel, Uniform):
                return scores.uniform(log_rest, x, node.total)
            return scores.masked(log_rest, node.total)

        return log_score

    def pairs(self) -> Tensor:
        """p of neighbours, [S, S], averaged over the places in a sequence."""
        at, total = self.initial, torch.zeros_like(self.transition)
        for _ in range(self.length - 1):
            total = total + at[:, None] * self.transition
            at = at @ self.transition
        return total / (self.length - 1)

    def pair_divergence(self, x: Tensor) -> float:
        """KL in nats of the chain's pairs of neighbours from those in x [n, length].

        One count is added, spread as the chain does it, so that the value is finite. Samples of the
        chain itself have about S^2 / (2 n length) on average, not 0.
        """
        found, p = pair_counts(x, self.states), self.pairs()
        return float(divergence(p, (found + p) / (found.sum() + 1)))

    def bits_per_token(self, x: Tensor) -> float:
        """Mean of -log2 p / length over sequences x [n, length]."""
        return -float(self.log_probability(x).mean()) / math.log(2) / self.length


def countdown(states: int, length: int, stay: float = 0.9) -> MarkovChain:
    """x_i+1 = x_i - 1 (mod states) with probability `stay`, else another token, all alike.

    The task of Campbell et al. 2024 and of Fu et al. 2025, small enough to enumerate.
    """
    other = (1 - stay) / (states - 1)
    transition = torch.full((states, states), other, dtype=torch.float64)
    tokens = torch.arange(states)
    transition[tokens, (tokens - 1) % states] = stay
    return MarkovChain(Uniform(states).law(), transition, length)


def dirichlet(states: int, length: int, seed: int, concentration: float = 1.0) -> MarkovChain:
    """A random chain: initial law and rows of the transition drawn from a Dirichlet law."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.full((states + 1, states), concentration, dtype=torch.float64)
    # Ratios of gamma variates, because torch's Dirichlet takes no generator.
    gamma = torch._standard_gamma(shape, generator=generator)
    laws = gamma / gamma.sum(-1, keepdim=True)
    return MarkovChain(laws[0], laws[1:], length)


def bigrams(tokens: Tensor, states: int, length: int, smoothing: float = 0.0) -> MarkovChain:
    """The chain of the bigrams of a text, tokens [n]; `smoothing` is added to every count.

    Without it the text rules some bigrams out, and a single one in a sample takes all likelihood.
    """
    counts = pair_counts(tokens[None], states) + smoothing
    if (counts.sum(1) == 0).any():
        raise ValueError(f"token {int((counts.sum(1) == 0).int().argmax())} begins no bigram")
    return MarkovChain(shares(counts.sum(1)), shares(counts), length)


def pair_counts(x: Tensor, states: int) -> Tensor:
    """How often token b follows a in sequences [n, length], float64 [states, states]."""
    code = (x[:, :-1] * states + x[:, 1:]).flatten()
    return torch.bincount(code, minlength=states**2).reshape(states, states).double()


def sequences(states: int, length: int) -> Tensor:
    """All sequences, int64 [states^length, length], the last site running fastest."""
    if states**length > MOST:
        raise ValueError(f"{states}^{length} sequences are too many to enumerate (most: {MOST})")
    return digits(torch.arange(states**length), states, length)


def digits(codes: Tensor, base: int, length: int) -> Tensor:
    """Numbers [n] written with `length` digits, int64 [n, length], the highest first."""
    return codes[:, None] // base ** torch.arange(length - 1, -1, -1) % base


def shares(weights: Tensor) -> Tensor:
    """Weights [..., S] divided by their sum; all alike where they are all 0."""
    whole = weights.sum(-1, keepdim=True)
    return torch.where(whole > 0, weights, 1) / torch.where(whole > 0, whole, weights.shape[-1])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of two laws of one shape; inf where q lacks what p has."""
    some = p > 0
    return torch.where(some, p * (torch.where(some, p, 1).log() - q.clamp(min=0).log()), 0).sum()
