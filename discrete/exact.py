"""The exact law of what a table samples, by pushing the law of all sequences forward."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import sequences
from .executor import LogScore, transition
from .table import JumpTable

# Numbers in one piece of a product of site laws.
PIECE = 2**22


def output_law(log_score: LogScore, table: JumpTable, length: int) -> Tensor:
    """The law of `sample`, float64 [states^length], differentiable in the numbers of the table.

    The joint law of all states that a row still needs is pushed through `transition`: the cost of
    a table of one stage is vocabulary^(2 length), of two stages at most vocabulary^(3 length).
    A table that does not end at clean data gives the law over the vocabulary.
    """
    every = sequences(table.kernel.vocabulary, length)
    mass = site_product(table.kernel.law().expand(1, length, -1))[0]
    # Each line is a history: codes of the states `kept`, and its probability.
    kept: tuple[int, ...] = (0,)
    codes = torch.arange(len(every))[:, None]
    known: dict[int, Tensor] = {}
    for n in range(table.nfe):
        known[n] = log_score(every, table.node(n))
        some = mass.detach() > 0
        codes, mass = codes[some], mass[some]
        wanted = (*table.live[n], n + 1) if n + 1 < table.nfe else (n + 1,)
        column = [kept.index(k) for k in wanted[:-1]]
        joint = torch.zeros(len(every) ** len(wanted), dtype=torch.float64)
        size = max(1, PIECE // len(every))
        for part, weight in zip(codes.split(size), mass.split(size), strict=True):
            states = {k: every[part[:, i]] for i, k in enumerate(kept)}
            scores = {k: known[k][part[:, i]] for i, k in enumerate(kept)}
            moved = weight[:, None] * site_product(transition(table, n, states, scores))
            place = torch.zeros(len(part), dtype=torch.long)
            for i in column:
                place = place * len(every) + part[:, i]
            index = place[:, None] * len(every) + torch.arange(len(every))
            joint = joint.index_add(0, index.flatten(), moved.flatten())
        kept, mass = wanted, joint
        lines = torch.arange(len(joint))[:, None]
        powers = len(every) ** torch.arange(len(wanted) - 1, -1, -1)
        codes = lines // powers % len(every)
    if table.clean:
        mass = mass[(every < table.kernel.states).all(1)]
    return mass


def site_product(laws: Tensor) -> Tensor:
    """The law of sequences [M, V^L] from independent laws of their sites [M, L, V]."""
    product = laws[:, 0]
    for i in range(1, laws.shape[1]):
        product = (product[:, :, None] * laws[:, i, None, :]).flatten(1)
    return product
