from __future__ import annotations

import itertools
import math

import pytest
import torch
from fewstep.discrete import Absorb, Geometric, LogLinear, MarkovChain, Node, Uniform, divergence
from fewstep.discrete.chains import bigrams, countdown, dirichlet, pair_counts, sequences

CHAIN = dirichlet(3, 4, seed=2)
NODES = {
    Uniform(3): Node(0, torch.tensor(0.5), Geometric(1e-3, 6.0).total(0.5)),
    Absorb(3): Node(0, torch.tensor(0.5), LogLinear().total(0.5)),
}


def survival(kernel, u, v, total):
    """q(v | u), written out."""
    kept = math.exp(-float(total))
    fresh = 1 / 3 if isinstance(kernel, Uniform) else float(v == 3)
    return kept * (u == v) + (1 - kept) * fresh


def test_the_law_of_a_chain():
    law = CHAIN.law()
    for code, x in enumerate(itertools.product(range(3), repeat=4)):
        p = float(CHAIN.initial[x[0]])
        for a, b in itertools.pairwise(x):
            p *= float(CHAIN.transition[a, b])
        assert float(law[code]) == pytest.approx(p, rel=1e-12)
    found = CHAIN.sample(100000, torch.Generator().manual_seed(0)) @ torch.tensor([27, 9, 3, 1])
    shares = found.bincount(minlength=81) / 100000
    torch.testing.assert_close(shares.double(), law, atol=0.006, rtol=0)


@pytest.mark.parametrize("kernel", NODES, ids=str)
def test_noise_and_scores_equal_sums_over_all_clean_sequences(kernel):
    node = NODES[kernel]
    law, clean = CHAIN.law().tolist(), list(itertools.product(range(3), repeat=4))
    table = [[survival(kernel, u, v, node.total) for v in range(4)] for u in range(3)]

    def noised(x):
        return sum(
            p * math.prod(table[u][v] for u, v in zip(x0, x, strict=True))
            for p, x0 in zip(law, clean, strict=True)
        )

    found = CHAIN.noised_law(kernel, node.total)
    every = sequences(kernel.vocabulary, 4)
    log_score = CHAIN.log_score(kernel)(every, node)
    for code in range(0, len(every), 13):
        x = every[code].tolist()
        assert float(found[code]) == pytest.approx(noised(x), rel=1e-10)
        for i, v in itertools.product(range(4), range(3)):
            if x[i] == v or (isinstance(kernel, Absorb) and x[i] != 3):
                continue
            ratio = noised([*x[:i], v, *x[i + 1 :]]) / noised(x)
            assert float(log_score[code, i, v].exp()) == pytest.approx(ratio, rel=1e-10)


def test_impossible_sequences_have_scores_too():
    chain = countdown(3, 4, stay=1.0)
    x = torch.tensor([[0, 0, 3, 3], [3, 2, 2, 1]])
    for total in (1e-9, 1.0, 40.0):
        node = Node(0, torch.tensor(0.5), torch.tensor(total, dtype=torch.float64))
        for kernel in (Absorb(3), Uniform(4)):
            chain = countdown(kernel.states, 4, stay=1.0)
            log_score = chain.log_score(kernel)(x, node)
            assert not log_score.isnan().any()
            assert (log_score < math.inf).all()


def test_the_chains():
    law = countdown(3, 2, stay=0.9).law().reshape(3, 3)
    expected = torch.tensor([[0.05, 0.05, 0.9], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]) / 3
    torch.testing.assert_close(law, expected.double(), rtol=1e-6, atol=0)
    torch.manual_seed(1)
    first = dirichlet(5, 3, seed=7)
    torch.manual_seed(2)
    again, other = dirichlet(5, 3, seed=7), dirichlet(5, 3, seed=8)
    assert torch.equal(first.transition, again.transition)
    assert not torch.equal(first.transition, other.transition)


def test_bigrams_of_a_text():
    text = torch.tensor([0, 1, 0, 1, 1, 2, 0])
    chain = bigrams(text, 3, 5)
    torch.testing.assert_close(
        chain.transition,
        torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 0]])
        / torch.tensor([1.0, 3, 1]).double()[:, None],
    )
    torch.testing.assert_close(chain.initial, torch.tensor([2, 3, 1]).double() / 6)
    smooth = bigrams(text, 4, 5, smoothing=0.5).transition
    torch.testing.assert_close(smooth[2], torch.tensor([1.5, 0.5, 0.5, 0.5]).double() / 3)
    with pytest.raises(ValueError, match="token 3 begins no bigram"):
        bigrams(text, 4, 5)


def test_pairs_and_bits_of_samples_are_those_of_the_law():
    x = CHAIN.sample(50000, torch.Generator().manual_seed(0))
    counts = pair_counts(x, 3)
    assert counts.sum() == 150000
    torch.testing.assert_close(counts / 150000, CHAIN.pairs(), atol=0.005, rtol=0)
    assert 0 < CHAIN.pair_divergence(x) < 1e-4
    # Few samples lack some pairs; another chain has other pairs.
    assert 0.01 < CHAIN.pair_divergence(x[:5]) < math.inf
    other = countdown(3, 4, stay=0.99)
    between = float(divergence(other.pairs(), CHAIN.pairs()))
    assert other.pair_divergence(x) == pytest.approx(between, rel=0.02)
    law = CHAIN.law()
    entropy = -float((law * law.log2()).sum()) / 4
    assert CHAIN.bits_per_token(x) == pytest.approx(entropy, abs=0.01)


def test_divergence():
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    assert float(divergence(p, q)) == pytest.approx(math.log(2))
    assert float(divergence(p, p)) == 0
    assert float(divergence(q, p)) == math.inf


def test_what_is_no_chain_is_refused():
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="transition must hold probabilities"):
        MarkovChain(half, torch.tensor([[0.5, 0.6], [0.5, 0.5]]), 3)
    with pytest.raises(ValueError, match="initial must hold probabilities"):
        MarkovChain(torch.tensor([1.5, -0.5]), torch.eye(2), 3)
    with pytest.raises(ValueError, match=r"transition has shape \[3, 3\], not \[2, 2\]"):
        MarkovChain(half, torch.eye(3), 3)
    with pytest.raises(ValueError, match="length 0"):
        MarkovChain(half, torch.eye(2), 0)
    with pytest.raises(ValueError, match=r"27\^64 sequences are too many"):
        sequences(27, 64)
