from __future__ import annotations

import math

import pytest
import torch
from fewstep.discrete import Absorb, Geometric, LogLinear, Node, Uniform, scores
from fewstep.discrete.chains import dirichlet, sequences

CHAIN = dirichlet(3, 3, seed=4)


def node(noise, time=0.4):
    return Node(0, torch.tensor(time), noise.total(time))


def posterior(kernel, total):
    """log p(x0_i | x) for every x by Bayes' rule over all clean sequences: [V^3, 3, S]."""
    every, clean = sequences(kernel.vocabulary, 3), sequences(3, 3)
    kept = math.exp(-float(total))
    fresh = torch.full((3,), 1 / 3) if isinstance(kernel, Uniform) else torch.zeros(3)
    same = every[:, None] == clean[None]
    other = fresh.sum() / 3 if isinstance(kernel, Uniform) else (every[:, None] == 3).double()
    joint = (kept * same + (1 - kept) * other).prod(-1).double() * CHAIN.law()
    hot = torch.nn.functional.one_hot(clean, 3).double()
    found = torch.einsum("xc,cis->xis", joint, hot)
    return every, (found / found.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize(
    ("kernel", "noise"), [(Absorb(3), LogLinear()), (Uniform(3), Geometric(1e-2, 4.0))], ids=str
)
def test_logits_of_the_clean_token_give_the_exact_score(kernel, noise):
    at = node(noise)
    every, log_posterior = posterior(kernel, at.total)
    # A shift and a column for the mask are what networks may have.
    logits = torch.cat([log_posterior + 3.0, torch.full((*every.shape, 1), 50.0).double()], -1)
    found = scores.from_posterior(lambda x, node: logits, kernel)(every, at)
    exact = CHAIN.log_score(kernel)(every, at)
    there = every[..., None] == torch.arange(3)
    open_to = ~there & ((every == 3) | isinstance(kernel, Uniform))[..., None]
    torch.testing.assert_close(found[open_to], exact[open_to], rtol=1e-6, atol=1e-6)


def test_sedd_leaves_out_what_scale_by_sigma_says():
    noise, kernel = LogLinear(), Absorb(3)
    at = node(noise)
    every = sequences(4, 3)
    exact = CHAIN.log_score(kernel)(every, at)
    # SEDD's code: x - log(e^sigma - 1) - log(vocabulary - 1), the mask in the vocabulary.
    inside = exact + math.log(math.expm1(float(at.total))) + math.log(4 - 1)
    padded = torch.nn.functional.pad(inside, (0, 1))
    found = scores.from_sedd(lambda x, node: padded, kernel)(every, at)
    torch.testing.assert_close(found, exact)
    plain = scores.from_sedd(lambda x, node: padded, kernel, scale_by_sigma=False)(every, at)
    torch.testing.assert_close(plain, inside)
    whole = scores.from_sedd(lambda x, node: exact, Uniform(3))(every, at)
    assert torch.equal(whole, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("total", [1e-12, 1e-4, 1.0, 80.0])
def test_scores_at_both_ends(total, dtype):
    x = torch.tensor([[0, 1]])
    logits = torch.tensor([[[0.0, -40.0, -200.0], [1.0, -torch.inf, 0.0]]], dtype=dtype)
    at = Node(0, torch.tensor(0.5), torch.tensor(total, dtype=torch.float64))
    for kernel in (Absorb(3), Uniform(3)):
        found = scores.from_posterior(lambda x, node: logits, kernel)(x, at)
        assert found.dtype == dtype
        assert not found.isnan().any()
        assert (found < torch.inf).all()
    # Almost all noise: every token is as likely, to the precision of the small difference.
    if total == 80.0:
        rest = logits.log_softmax(-1)
        assert (scores.uniform(rest, x, total).abs() < 1e-33).all()
        assert scores.uniform(rest, x, total)[0, 0, 1] < 0


def test_a_clean_sequence_has_no_score():
    with pytest.raises(ValueError, match="no score without noise"):
        scores.masked(torch.zeros(1, 2, 3), 0.0)
