from __future__ import annotations

import math

import pytest
import torch
from fewstep.discrete.chains import countdown, dirichlet
from fewstep.eval.text import NGrams, entropy, score_text


def test_the_laws_are_those_of_counting():
    model = NGrams.of(torch.tensor([0, 1, 0, 1, 1, 0]), 2, order=2)
    single = [(3 + 4 / 2) / 10] * 2
    assert model.laws[0][0].tolist() == pytest.approx(single)
    # After 0: 1 twice; after 1: 0 twice and 1 once.
    after = [[2 / 6, (2 + 2) / 6], [(2 + 2) / 7, (1 + 2) / 7]]
    assert model.laws[1].tolist() == pytest.approx([pytest.approx(row) for row in after])
    bits = -math.log2(0.5) - math.log2(4 / 6)
    assert model.bits(torch.tensor([[0, 1]])) == pytest.approx(bits / 2)


def test_laws_sum_to_one_and_contexts_are_read_in_order():
    text = torch.arange(300) % 3
    model = NGrams.of(text, 3, order=3)
    assert all(torch.allclose(law.sum(1), torch.ones(len(law)).double()) for law in model.laws)
    # After 0, 1 comes 2: the context is 0 * 3 + 1.
    assert float(model.laws[2][1, 2]) > 0.9
    forward, backward = torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor([[2, 1, 0, 2, 1, 0]])
    assert model.bits(forward) < 0.5 < 2 < model.bits(backward)


def test_much_text_of_a_chain_has_its_entropy():
    chain = dirichlet(4, 2000, seed=3)
    generator = torch.Generator().manual_seed(0)
    train, test = chain.sample(20, generator).flatten(), chain.sample(20, generator)
    found = NGrams.of(train, 4, order=3).bits(test)
    assert found == pytest.approx(chain.bits_per_token(test), abs=0.01)


def test_samples_like_the_data_have_no_flags_and_those_too_likely_have():
    chain = countdown(5, 30, stay=0.6)
    generator = torch.Generator().manual_seed(0)
    model = NGrams.of(chain.sample(300, generator).flatten(), 5, order=2)
    data, good = (chain.sample(500, generator) for _ in range(2))
    fair = score_text(good, data, model)
    assert fair.flags == ()
    assert fair.pair_divergence < 5e-3
    likely = score_text(countdown(5, 30, stay=0.9).sample(500, generator), data, model)
    assert likely.bits < fair.bits
    assert len(likely.flags) == 1
    assert "below the data's" in likely.flags[0]
    dull = score_text(torch.zeros(500, 30, dtype=torch.long), data, model)
    assert "entropy of tokens is 0.000" in dull.flags[-1]
    assert dull.pair_divergence > 1


def test_entropy_is_that_of_tokens():
    assert entropy(torch.tensor([[0, 1], [2, 3]]), 4) == pytest.approx(2.0)
    assert entropy(torch.tensor([[1, 1]]), 4) == 0
