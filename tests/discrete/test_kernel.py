from __future__ import annotations

import pytest
import torch
from fewstep.discrete import Absorb, Uniform, matrix, noised
from fewstep.discrete.kernel import draw, prior


@pytest.mark.parametrize("total", [0.0, 0.3, 5.0])
def test_the_matrices_are_exponentials_of_the_generators(total):
    uniform = torch.full((4, 4), 0.25, dtype=torch.float64) - torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(matrix(Uniform(4), total), torch.matrix_exp(total * uniform))
    absorb = -torch.eye(4, dtype=torch.float64)
    absorb[:, 3] += 1
    torch.testing.assert_close(matrix(Absorb(3), total), torch.matrix_exp(total * absorb)[:3])


@pytest.mark.parametrize("kernel", [Uniform(3), Absorb(3)], ids=str)
def test_noised_tokens_follow_the_matrix(kernel):
    x0 = torch.arange(3).repeat(40000, 1)
    total = torch.tensor([0.2, 1.5]).repeat_interleave(20000)
    x = noised(kernel, x0, total, torch.Generator().manual_seed(0))
    for half, amount in zip(x.chunk(2), (0.2, 1.5), strict=True):
        for token in range(3):
            found = half[:, token].bincount(minlength=kernel.vocabulary) / 20000
            expected = matrix(kernel, amount)[token].float()
            torch.testing.assert_close(found, expected, atol=0.015, rtol=0)
    assert torch.equal(noised(kernel, x0, 0.0), x0)


def test_pure_noise():
    u = torch.rand(5000, 2, generator=torch.Generator().manual_seed(0))
    assert (prior(Absorb(7), u) == 7).all()
    shares = prior(Uniform(4), u).flatten().bincount() / 10000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_a_draw_inverts_the_cumulated_law_and_never_takes_what_has_none():
    law = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.2, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert draw(law.expand(5, -1), u).tolist() == [1, 1, 3, 3, 3]
    # A sum that was rounded below or above 1.
    for factor in (1 - 1e-6, 1 + 1e-6):
        assert draw(factor * law.expand(5, -1), u).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("states", [1, 2.0, True])
def test_a_kernel_needs_two_states(states):
    with pytest.raises(ValueError, match="at least 2 states"):
        Uniform(states)
    with pytest.raises(ValueError, match="at least 2 states"):
        Absorb(states)
