"""The exact law of what a table samples, by pushing the law of all sequences forward."""

from __future__ import annotations

import torch
from torch import Tensor

from .chains import digits, sequences
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
    v = len(every)
    # Histories are codes of the states `kept`, each with its probability.
    kept: tuple[int, ...] = (0,)
    mass = site_product(table.kernel.law().expand(1, length, -1))[0]
    known: dict[int, Tensor] = {}
    for n in range(table.nfe):
        known[n] = log_score(every, table.node(n))
        some = mass.detach().nonzero()[:, 0]
        wanted = (*table.live[n], n + 1)
        joint = torch.zeros(v ** len(wanted), dtype=torch.float64)
        for piece in some.split(max(1, PIECE // v)):
            at = dict(zip(kept, digits(piece, v, len(kept)).T, strict=True))
            states = {k: every[code] for k, code in at.items()}
            scores = {k: known[k][code] for k, code in at.items()}
            moved = mass[piece, None] * site_product(transition(table, n, states, scores))
            place = torch.zeros_like(piece)
            for k in table.live[n]:
                place = place * v + at[k]
            joint = joint.index_add(
                0, (place[:, None] * v + torch.arange(v)).flatten(), moved.flatten()
            )
        kept, mass = wanted, joint
    if table.clean:
        mass = mass[(every < table.kernel.states).all(1)]
    return mass


def site_product(laws: Tensor) -> Tensor:
    """The law of sequences [M, V^L] from independent laws of their sites [M, L, V]."""
    product = laws[:, 0]
    for i in range(1, laws.shape[1]):
        product = (product[:, :, None] * laws[:, i, None, :]).flatten(1)
    return product
