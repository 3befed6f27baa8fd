from __future__ import annotations

import pytest
import torch
from fewstep.discrete import Geometric, LogLinear
from fewstep.discrete.noise import log_expm1

LAWS = [LogLinear(), LogLinear(0.1), Geometric(), Geometric(1e-3, 6.0)]


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_the_rate_is_the_derivative_and_the_time_the_inverse(noise):
    time = torch.linspace(0, 1, 41, dtype=torch.float64, requires_grad=True)
    total = noise.total(time)
    (slope,) = torch.autograd.grad(total.sum(), time, create_graph=True)
    torch.testing.assert_close(noise.rate(time), slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(noise.time(total), time, rtol=1e-12, atol=1e-13)
    assert noise.total(0.5).dtype == torch.float64


def test_the_laws_have_the_ends_they_promise():
    assert LogLinear().total(0.0) == 0
    # A token is kept with probability eps at the end, and linearly in between.
    kept = torch.exp(-LogLinear(0.01).total(torch.tensor([0.5, 1.0])))
    torch.testing.assert_close(kept, torch.tensor([0.505, 0.01], dtype=torch.float64))
    ends = Geometric(1e-3, 6.0).total(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([1e-3, 6.0], dtype=torch.float64))


def test_impossible_laws_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1, got 0"):
        LogLinear(0)
    with pytest.raises(ValueError, match="low < high, got 3 and 2"):
        Geometric(3, 2)


def test_log_expm1_at_both_ends():
    tiny = torch.tensor([1e-12, 1.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(
        log_expm1(tiny),
        torch.tensor([-27.631021115928047, 0.5413248546129181, 1000.0], dtype=torch.float64),
    )
