from __future__ import annotations

import math

import numpy as np
import pytest
from fewstep.eval.metrics import Estimate, difference, jackknife

SIZES = np.array([3.0, 5, 2, 10])


def blocks_of(values, sizes=SIZES):
    return np.split(values, np.cumsum(sizes).astype(int)[:-1])


def jackknife_of(statistic, values, sizes=SIZES):
    parts = blocks_of(values, sizes)

    def without(block):
        return statistic(np.concatenate([p for k, p in enumerate(parts) if k != block]))

    return jackknife(without, sizes)


def test_a_mean_has_no_bias_and_the_error_of_its_blocks():
    x = np.random.default_rng(0).normal(size=20)
    got = jackknife_of(np.mean, x)
    assert got.value == pytest.approx(x.mean())
    assert got.corrected == pytest.approx(x.mean(), abs=1e-14)
    means = np.array([part.mean() for part in blocks_of(x)])
    np.testing.assert_allclose(got.pseudo, means, atol=1e-13)
    squares = (means - x.mean()) ** 2 / (20 / SIZES - 1)
    assert got.error == pytest.approx(math.sqrt(squares.mean()))


def test_blocks_of_one_sample_give_the_textbook_error_of_a_mean():
    x = np.random.default_rng(1).normal(size=30)
    got = jackknife_of(np.mean, x, np.ones(30))
    assert got.error == pytest.approx(x.std(ddof=1) / math.sqrt(30))


def test_the_bias_of_a_variance_goes():
    x = np.random.default_rng(2).normal(size=30)
    got = jackknife_of(np.var, x, np.ones(30))
    assert got.corrected == pytest.approx(x.var(ddof=1))


def test_bias_and_error_of_uneven_blocks():
    # The square of a mean: biased by var / n, standard error near 2 |mean| sd / sqrt(n).
    sizes = np.array([40.0, 10, 25, 30, 15, 20, 35, 25] * 3)
    generator = np.random.default_rng(3)
    sets = [generator.normal(0.5, 1, int(sizes.sum())) for _ in range(200)]
    found = [jackknife_of(lambda x: x.mean() ** 2, x, sizes) for x in sets]
    values, corrected = (np.array([getattr(f, n) for f in found]) for n in ("value", "corrected"))
    bias = 1 / sizes.sum()
    assert np.mean(values - corrected) == pytest.approx(bias, rel=0.3)
    assert np.mean([each.error for each in found]) == pytest.approx(values.std(), rel=0.2)


def test_empty_blocks_are_not_left_out():
    asked = []

    def statistic(without):
        asked.append(without)
        return 1.0

    got = jackknife(statistic, np.array([0, 4, 0, 6]))
    assert set(asked) == {None, 1, 3}
    assert got.sizes.tolist() == [4, 6]
    assert got.error == 0


@pytest.mark.parametrize("sizes", [[7], [0, 7, 0]])
def test_a_single_block_has_no_error(sizes):
    got = jackknife(lambda without: {None: 2.5}[without], np.array(sizes))
    assert got.value == 2.5
    assert math.isnan(got.error)
    assert math.isnan(got.corrected)


def test_what_two_samplers_share_cancels():
    generator = np.random.default_rng(4)
    x = generator.normal(size=200)
    sizes = np.full(20, 10.0)
    a, b = jackknife_of(np.mean, x + 1, sizes), jackknife_of(np.mean, x, sizes)
    assert difference(a, b).value == pytest.approx(1)
    assert difference(a, b).error == pytest.approx(0, abs=1e-12)
    assert a.error > 0.05
    y = x + 0.1 * generator.normal(size=200)
    paired = difference(jackknife_of(np.mean, y, sizes), b)
    assert paired.error == pytest.approx(jackknife_of(np.mean, y - x, sizes).error)


def test_other_blocks_do_not_pair():
    a = Estimate(1.0, np.ones(2), np.array([3.0, 4]))
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[4, 3\]"):
        difference(a, Estimate(1.0, np.ones(2), np.array([4.0, 3])))


def test_what_is_not_known_is_none_in_the_summary():
    alone = Estimate(1.0, np.array([]), np.array([]))
    assert alone.summary == {"value": 1.0, "error": None, "corrected": None}
