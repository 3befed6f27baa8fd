from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from fewstep.eval.metrics import KernelDistance, cmmd, difference, gaussian, polynomial


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fed(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric


def cubic(x, y):
    return (float(x @ y) / len(x) + 1) ** 3


def bell(bandwidth):
    return lambda x, y: math.exp(-float(((x - y) ** 2).sum()) / (2 * bandwidth**2))


def mmd2(kernel, x, y, unbiased=True):
    x, y = x.double().numpy(), y.double().numpy()

    def inner(z):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j or not unbiased]
        return np.mean([kernel(z[i], z[j]) for i, j in pairs])

    return inner(x) + inner(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("ours", "loop"), [(polynomial, cubic), (gaussian(2.0), bell(2.0))])
def test_all_pairs_equal_a_double_loop(ours, loop, unbiased):
    x, y = normal(23, 5, 1) + 0.5, normal(17, 5, 2)
    metric = fed(KernelDistance(y, ours, unbiased=unbiased, subsets=None), *x.split(4))
    assert float(metric.compute()) == pytest.approx(mmd2(loop, x, y, unbiased), abs=1e-12)
    assert metric.compute().dtype == torch.float64


def test_more_rows_than_are_taken_at_a_time():
    x, y = normal(1100, 3, 1) + 0.5, normal(1050, 3, 2)
    metric = fed(KernelDistance(y, subsets=None), *x.split(100))
    a, b = x.double().numpy(), y.double().numpy()
    xx, yy, xy = ((u @ v.T / 3 + 1) ** 3 for u, v in ((a, a), (b, b), (a, b)))
    expected = (xx.sum() - xx.trace()) / (1100 * 1099) + (yy.sum() - yy.trace()) / (1050 * 1049)
    assert float(metric.compute()) == pytest.approx(expected - 2 * xy.mean(), rel=1e-10)


def test_subsets_are_those_of_the_seed():
    x, y = normal(40, 5, 1) + 0.5, normal(30, 5, 2)
    metric = fed(KernelDistance(y, subsets=3, subset_size=10), *x.split(7))
    generator = np.random.RandomState(2020)
    expected = []
    for _ in range(3):
        i, j = (generator.choice(n, 10, replace=False) for n in (40, 30))
        expected.append(mmd2(cubic, x[i], y[j]))
    mean, spread = metric.spread()
    assert float(mean) == pytest.approx(np.mean(expected), abs=1e-12)
    assert float(spread) == pytest.approx(np.std(expected, ddof=0), abs=1e-12)


def test_two_calls_agree_and_another_seed_does_not():
    x, y = normal(100, 5, 1), normal(100, 5, 2)
    same, again, other = (
        float(fed(KernelDistance(y, subsets=5, subset_size=20, seed=seed), x).compute())
        for seed in (1, 1, 2)
    )
    assert same == again
    assert same != other


def test_subsets_are_no_larger_than_a_side():
    x, y = normal(12, 5, 1), normal(40, 5, 2)
    metric = fed(KernelDistance(y, subsets=4), x)
    generator = np.random.RandomState(2020)
    pairs = [[generator.choice(n, 12, replace=False) for n in (12, 40)] for _ in range(4)]
    expected = np.mean([mmd2(cubic, x[i], y[j]) for i, j in pairs])
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


def test_the_same_law_is_at_zero_on_average():
    values = [
        float(
            fed(KernelDistance(normal(50, 8, s), subsets=None), normal(50, 8, 10**6 + s)).compute()
        )
        for s in range(200)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    assert min(values) < 0


def test_identical_sets_are_at_zero_if_biased():
    x = torch.nn.functional.normalize(normal(100, 8))
    assert float(fed(cmmd(x), *x.split(9)).compute()) == pytest.approx(0, abs=1e-10)


def test_cmmd_of_orthonormal_embeddings():
    basis = torch.eye(10)
    got = fed(cmmd(basis[:4]), *basis[4:].split(2)).compute()
    # All distances are sqrt(2), between the sets and within them, but those to itself.
    apart = math.exp(-2 / 200)
    expected = (4 + 12 * apart) / 16 + (6 + 30 * apart) / 36 - 2 * apart
    assert float(got) == pytest.approx(1000 * expected, rel=1e-9)


@pytest.mark.parametrize("subsets", [None, 3])
def test_the_estimate_leaves_blocks_out(subsets):
    x, y = normal(40, 5, 1) + 0.5, normal(30, 5, 2)
    parts = x.split([10, 14, 16])
    metric = fed(KernelDistance(y, subsets=subsets, blocks=5, scale=3.0), *parts)
    value = float(metric.compute())
    got = metric.estimate()
    assert got.value == pytest.approx(value, rel=1e-12)
    assert got.sizes.tolist() == [10, 14, 16]
    if subsets is None:
        rests = [torch.cat([p for j, p in enumerate(parts) if j != k]) for k in range(3)]
        expected = [3 * mmd2(cubic, rest, y) for rest in rests]
        np.testing.assert_allclose(got.replicates, expected, atol=1e-12)
    else:
        generator = np.random.RandomState(2020)
        draws = [[generator.choice(n, 30, replace=False) for n in (40, 30)] for _ in range(3)]
        expected = np.mean([3 * mmd2(cubic, x[i[i >= 10]], y[j]) for i, j in draws])
        assert got.replicates[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [{"subsets": None}, {"subsets": 10, "subset_size": 200}])
def test_the_error_is_that_of_fresh_sets(options):
    y = normal(500, 16, 10**6)
    found = [
        fed(KernelDistance(y, **options), *(normal(400, 16, s) * 1.1 + 0.1).split(20)).estimate()
        for s in range(30)
    ]
    spread = np.std([each.value for each in found], ddof=1)
    assert spread / 2 < np.mean([each.error for each in found]) < spread * 2


def test_a_paired_difference_has_the_smaller_error():
    y, x = normal(500, 8, 1), normal(400, 8, 2) * 1.1
    near, fresh = x + 0.05 * normal(400, 8, 3), normal(400, 8, 4) * 1.1
    a, b, c = (
        fed(KernelDistance(y, subsets=None), *z.split(20)).estimate() for z in (x, near, fresh)
    )
    assert difference(a, b).error < 0.5 * difference(a, c).error


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_alone(copied):
    metric = fed(cmmd(normal(9, 4)), normal(7, 4, 1))
    other = fed(copied(metric), normal(8, 4, 2))
    assert [len(m.stored()[0]) for m in (metric, other)] == [7, 15]
    assert float(other.compute()) == float(fed(metric, normal(8, 4, 2)).compute())


def test_bad_input_is_refused():
    y = normal(9, 4)
    with pytest.raises(ValueError, match="not 0 of 1000"):
        KernelDistance(y, subsets=0)
    with pytest.raises(ValueError, match="not 5 of 1"):
        KernelDistance(y, subsets=5, subset_size=1)
    with pytest.raises(ValueError, match="positive, not 0"):
        gaussian(0)
    with pytest.raises(ValueError, match="2 samples a side, got 1, 9"):
        fed(KernelDistance(y), normal(1, 4)).compute()
    with pytest.raises(ValueError, match="2 samples a side, got 3, 1"):
        fed(KernelDistance(y[:1]), normal(3, 4)).compute()


def test_a_subset_without_samples_outside_a_block_is_refused():
    metric = fed(KernelDistance(normal(9, 4), subset_size=2, blocks=2), *normal(6, 4).split(3))
    assert math.isfinite(metric.compute())
    with pytest.raises(ValueError, match="samples are left without block"):
        metric.estimate()
