from __future__ import annotations

import pytest
import torch
from fewstep.distill.mmd.discrepancy import KERNELS, Space, clamped, discrepancy, kernel, mmd2

SEED = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=SEED)


def slow_kernel(name, x, y):
    d = len(x)
    match name:
        case "cubic":
            return (sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / d + 1) ** 3
        case "rbf":
            gap = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
            return 2.718281828459045 ** (-gap / d)
        case "linear":
            return sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / d


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_that_of_loops_over_pairs(name):
    x, y = draw(5, 3), 0.5 + draw(7, 3)
    n, m = len(x), len(y)
    total = sum(slow_kernel(name, x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    truth = total / (n * (n - 1))
    total = sum(slow_kernel(name, y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    truth += total / (m * (m - 1))
    truth -= 2 * sum(slow_kernel(name, a, b) for a in x for b in y) / (n * m)
    assert float(mmd2(x, y, kernel(name, 3))) == pytest.approx(truth, abs=1e-10)


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_unbiased_and_so_may_be_below_zero(name):
    found = torch.stack([mmd2(draw(6, 2), draw(6, 2), kernel(name, 2)) for _ in range(2000)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / 2000**0.5
    assert float((found < 0).double().mean()) > 0.2


def test_laws_with_one_mean_differ_for_all_kernels_but_the_linear_one():
    x, y = draw(1500, 2), 2 * draw(1500, 2)
    found = {name: float(mmd2(x, y, kernel(name, 2))) for name in KERNELS}
    assert found["cubic"] > 0.5
    assert found["rbf"] > 0.02
    assert abs(found["linear"]) < 0.04


def test_spaces_add_up_with_their_weights():
    real, found = draw(9, 2), draw(4, 2)
    rows = torch.tensor([8, 1, 2, 5])
    one = Space("a", "", lambda x: x, real, kernel("cubic", 2))
    two = Space("b", "", lambda x: x, real, kernel("rbf", 2), weight=0.25)
    truth = mmd2(found, real[rows], kernel("cubic", 2))
    truth = truth + 0.25 * mmd2(found, real[rows], kernel("rbf", 2))
    torch.testing.assert_close(discrepancy([one, two], [found, found], rows), truth)


def test_clamping_lets_the_gradient_through():
    x = torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    out = clamped(x)
    assert out.tolist() == [-1.0, 0.5, 1.0]
    out.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_too_few_samples_and_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="2 samples a side, got 1"):
        mmd2(draw(1, 2), draw(4, 2), kernel("cubic", 2))
    with pytest.raises(ValueError, match="one of cubic, rbf, linear"):
        kernel("quartic", 2)
