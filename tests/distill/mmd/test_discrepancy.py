from __future__ import annotations

import pytest
import torch
from fewstep.distill.mmd.discrepancy import (
    KERNELS,
    Space,
    clamped,
    discrepancy,
    kernel,
    mmd2,
    similarity,
    stratified,
)

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
    # That real images are alike is known of all.
    known = [similarity(real, kernel(name, 2)) for name in ("cubic", "rbf")]
    truth = mmd2(found, real[rows], kernel("cubic", 2), apart=known[0])
    truth = truth + 0.25 * mmd2(found, real[rows], kernel("rbf", 2), apart=known[1])
    torch.testing.assert_close(discrepancy([one, two], [found, found], rows), truth)


SHARES = torch.tensor([0.2, 0.5, 0.3])
CENTRES = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)


def of_classes(labels):
    return CENTRES[labels][:, None] + draw(len(labels), 1)


def by_chance(count):
    return torch.multinomial(SHARES, count, True, generator=SEED)


def test_weights_of_pairs_are_those_of_the_classes():
    labels = torch.tensor([0] * 4 + [1] * 5 + [2] * 6)
    found = stratified((labels, 2 * SHARES), 15)
    assert float(found.sum()) == pytest.approx(1)
    assert (found.diagonal() == 0).all()
    assert float(found[0, 1]) == pytest.approx(0.2**2 / 12)
    assert float(found[4, 5]) == pytest.approx(0.5**2 / 20)
    assert float(found[0, 9]) == pytest.approx(0.2 / 4 * 0.3 / 6)
    per_class = torch.zeros(3).double().index_add_(0, labels, found.sum(1))
    torch.testing.assert_close(per_class, SHARES.double())


def test_rare_classes_count_as_one():
    found = stratified((torch.tensor([0, 1, 2, 2, 2, 2]), SHARES), 6)
    assert float(found.sum()) == pytest.approx(1)
    # Two of two classes, of a share of .7, and four of the third.
    assert float(found[0, 1]) == pytest.approx(0.7**2 / 2)
    assert float(found[2, 3]) == pytest.approx(0.3**2 / 12)
    for labels in ([0] * 8, [0, 1, 2], [1, 0, 0, 0]):
        # None that can be told apart.
        found = stratified((torch.tensor(labels), SHARES), len(labels))
        torch.testing.assert_close(found, stratified(None, len(labels)))


def test_evened_out_classes_are_unbiased_and_less_noise():
    cubic = kernel("cubic", 1)
    plain, even, fixed, biased = [], [], [], []
    arranged = torch.tensor([0] * 12 + [1] * 30 + [2] * 18)
    for _ in range(1000):
        labels = by_chance(60)
        x, y = of_classes(labels), of_classes(by_chance(600))
        apart = similarity(y, cubic)
        plain.append(mmd2(x, y, cubic, apart=apart))
        even.append(mmd2(x, y, cubic, stratified((labels, SHARES), 60), apart))
        x = of_classes(arranged)
        biased.append(mmd2(x, y, cubic, apart=apart))
        fixed.append(mmd2(x, y, cubic, stratified((arranged, SHARES), 60), apart))
    plain, even, fixed, biased = map(torch.stack, (plain, even, fixed, biased))

    def sure(found):
        return float(found.mean()) / (float(found.std()) / len(found) ** 0.5)

    assert abs(sure(plain)) < 3
    assert abs(sure(even)) < 3
    assert abs(sure(fixed)) < 3
    # Shares that are met exactly are not those of independent samples.
    assert sure(biased) < -10
    assert even.std() < 0.7 * plain.std()


def test_many_rows_are_taken_in_parts(monkeypatch):
    y, cubic = draw(23, 3), kernel("cubic", 3)
    matrix = cubic(y, y)
    truth = (matrix.sum() - matrix.diagonal().sum()) / (23 * 22)
    monkeypatch.setattr("fewstep.eval.metrics.kernel.ROWS", 5)
    torch.testing.assert_close(similarity(y, cubic), truth)
    monkeypatch.setattr("fewstep.distill.mmd.discrepancy.MANY", 8)
    of_some = Space("a", "", lambda x: x, y, cubic, unit=2.0).apart
    torch.testing.assert_close(of_some, similarity(y[::3] / 2, cubic))


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
