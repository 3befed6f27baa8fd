from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fewstep.distill.tables.objective import Objective
from fewstep.samplers.fit import Trajectories

GAP = torch.tensor([[-3.0, -0.1, 0.0], [0.02, 1.0, 0.5]], dtype=torch.float64)


def test_squares_and_their_robust_form():
    assert torch.equal(Objective("l2").cost(GAP), GAP.square())
    found = Objective("l1", 0.1).cost(GAP)
    assert found[0, 0] == pytest.approx(3.0, rel=1e-3)
    assert found[0, 2] == pytest.approx(0.1)


def test_the_logarithm_is_of_the_mean_square_of_a_sample():
    found = Objective("log", 1e-9).cost(GAP)
    truth = [math.log(9.01 / 3), math.log(1.2504 / 3)]
    assert found.flatten().tolist() == pytest.approx(truth)
    exact = Objective("log", 0.1).cost(torch.zeros(1, 3))
    assert float(exact) == pytest.approx(math.log(0.01))


@pytest.mark.parametrize("kind", ["l2", "l1", "log"])
def test_the_slope_times_the_error_is_half_the_gradient(kind):
    objective = Objective(kind, 0.1)
    gap = GAP.clone().requires_grad_()
    objective.cost(gap).mean(1).sum().backward()
    torch.testing.assert_close(2 / 3 * objective.slope(GAP) * GAP, gap.grad)


def test_features_weigh_as_their_share_of_the_pixels():
    x = torch.ones(2, 1, 4, 4)
    objective = Objective("l2", features=lambda x: x.flatten(1)[:, :4], weight=0.5)
    found = objective.outputs(x).each
    assert found.shape == (2, 20)
    pixels, features = found[:, :16].square().sum(), found[:, 16:].square().sum()
    assert float(features / pixels) == pytest.approx(0.5**2)


def test_likeness_is_of_all_samples_of_a_set_and_not_of_each():
    x, ends = torch.tensor([[1.0], [3.0], [6.0]]), torch.tensor([[2.0], [2.0], [4.0]])
    parts = [Trajectories(lambda x, node: x, x[:2], [ends[:2]])]
    parts.append(Trajectories(lambda x, node: x, x[2:], [ends[2:]]))
    one = Objective("l2", features=torch.clone, moments=torch.clone, likeness=10.0)
    # Of one set: the means are 10 / 3 and 8 / 3.
    plain = replace(one, likeness=0.0).compare(parts, [x[:2], x[2:]]).loss
    assert one.compare(parts, [x[:2], x[2:]]).loss == pytest.approx(plain + 10 * (2 / 3) ** 2)
    # Of two, with errors that cancel in the first.
    parts[1] = replace(parts[1], shares=(2.0,))
    assert one.compare(parts, [x[:2], x[2:]]).loss == pytest.approx(plain + 10 * 2**2 / 3)
    goal = replace(one, goal=torch.tensor([1.0]))
    assert goal.compare(parts[:1], [x[:2]]).loss == pytest.approx((1 + 0.4**2) / 2 + 10 * 1**2)
