"""Samples of token sequences beside data: likelihood under another model, and what it hides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..discrete.chains import divergence, pair_counts, shares

# Bits below the data's that chance explains, and the share of its entropy that is to be left.
SLACK, LEAST_ENTROPY = 0.02, 0.99
# How many observations the shorter context counts for.
STRENGTH = 4.0


@dataclass(frozen=True, eq=False)
class NGrams:
    """An n-gram model: laws of a token after each context of up to `order` - 1 tokens.

    p_n(v | c) = (count(c v) + STRENGTH p_{n-1}(v | c without its first)) / (count(c) + STRENGTH)

    (MacKay and Peto 1995, "A Hierarchical Dirichlet Language Model"). `laws`[k] is float64
    [states^k, states].
    """

    laws: tuple[Tensor, ...]

    @classmethod
    def of(cls, tokens: Tensor, states: int, order: int = 4) -> NGrams:
        """The model of a text, int64 [n]."""
        law = torch.full((1, states), 1 / states, dtype=torch.float64)
        laws = []
        for k in range(order):
            code = tokens.unfold(0, k + 1, 1) @ (states ** torch.arange(k, -1, -1))
            counts = torch.bincount(code, minlength=states ** (k + 1)).reshape(-1, states).double()
            # Contexts with another first token share what is known of the rest.
            prior = law if k == 0 else law.repeat(states, 1)
            law = (counts + STRENGTH * prior) / (counts.sum(1, keepdim=True) + STRENGTH)
            laws.append(law)
        return cls(tuple(laws))

    def bits(self, x: Tensor) -> float:
        """Mean of -log2 p per token of sequences, int64 [N, L]."""
        states, total = self.laws[0].shape[1], torch.zeros(len(x), dtype=torch.float64)
        for i in range(x.shape[1]):
            k = min(i, len(self.laws) - 1)
            context = x[:, i - k : i] @ (states ** torch.arange(k - 1, -1, -1))
            total -= self.laws[k][context, x[:, i]].log2()
        return float(total.mean()) / x.shape[1]


@dataclass(frozen=True)
class TextScore:
    """Of samples: bits per token under a model, entropy of tokens in bits, KL of pairs in nats.

    `data_bits` and `data_entropy` are those of real sequences. A perplexity is 2^bits. Bits can be
    had for nothing, by likely tokens only: `flags` says where they are below those of the data, or
    the entropy is.
    """

    bits: float
    entropy: float
    pair_divergence: float
    data_bits: float
    data_entropy: float

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong with these samples, whatever the bits say."""
        found = []
        if self.bits < self.data_bits - SLACK:
            found.append(
                f"{self.bits:.3f} bits per token, below the data's {self.data_bits:.3f}: likelier "
                "than real text is no gain, but a loss of variety"
            )
        if self.entropy < LEAST_ENTROPY * self.data_entropy:
            found.append(
                f"the entropy of tokens is {self.entropy:.3f} bits, the data's "
                f"{self.data_entropy:.3f}"
            )
        return tuple(found)


def score_text(x: Tensor, data: Tensor, model: NGrams) -> TextScore:
    """Samples x [N, L] beside real sequences [M, L], int64, under a model of others."""
    states = model.laws[0].shape[1]
    counts = [pair_counts(each, states) for each in (x, data)]
    real = shares(counts[1].flatten())
    # One count is added as the data has it, so that a pair that never came costs no infinity.
    found = (counts[0].flatten() + real) / (counts[0].sum() + 1)
    return TextScore(
        model.bits(x),
        entropy(x, states),
        float(divergence(real, found)),
        model.bits(data),
        entropy(data, states),
    )


def entropy(x: Tensor, states: int) -> float:
    """Of the tokens in sequences [N, L], in bits."""
    p = torch.bincount(x.flatten(), minlength=states).double() / x.numel()
    return float((p[p > 0] * p[p > 0].reciprocal().log()).sum()) / math.log(2)
