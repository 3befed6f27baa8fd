from __future__ import annotations

import pytest
import torch
from fewstep.distill.objective import Objective

GAP = torch.tensor([-3.0, -0.1, 0.0, 0.02, 1.0], dtype=torch.float64)


def test_squares_and_their_robust_form():
    assert torch.equal(Objective(None).cost(GAP), GAP.square())
    found = Objective(0.1).cost(GAP)
    assert found[0] == pytest.approx(3.0, rel=1e-3)
    assert found[2] == pytest.approx(0.1)


@pytest.mark.parametrize("eps", [None, 0.1])
def test_the_slope_times_the_error_is_the_gradient(eps):
    objective = Objective(eps)
    gap = GAP.clone().requires_grad_()
    objective.cost(gap).sum().backward()
    factor = 2 if eps is None else 1
    torch.testing.assert_close(factor * objective.slope(GAP) * GAP, gap.grad)


def test_features_weigh_as_their_share_of_the_pixels():
    x = torch.ones(2, 1, 4, 4)
    objective = Objective(None, lambda x: x.flatten(1)[:, :4], 0.5)
    found = objective.outputs(x)
    assert found.shape == (2, 20)
    pixels, features = found[:, :16].square().sum(), found[:, 16:].square().sum()
    assert float(features / pixels) == pytest.approx(0.5**2)
