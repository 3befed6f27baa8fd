"""Laws from batches are those of all data at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.samplers.gaussian_fit import clusters, fit_gaussian

RNG = np.random.default_rng(3)
# Far from zero, where sums of squares would lose digits, and of variances that fall fast.
DIM, COUNT = 60, 500
TURN = np.linalg.qr(RNG.normal(size=(DIM, DIM)))[0]
SCALES = 2.0 ** -np.arange(DIM).clip(max=12)
DATA = 1e4 + RNG.normal(size=(COUNT, DIM)) * SCALES @ TURN.T
LABELS = RNG.integers(0, 3, COUNT)


def batches(data=DATA, labels=None, size=64):
    """As `fit_gaussian` takes them, shaped [B, 3, 4, 5]; counts how often it was asked."""
    calls = []
    group = np.zeros(len(data), dtype=int) if labels is None else labels

    def again():
        calls.append(1)
        for i in range(0, len(data), size):
            x = torch.from_numpy(data[i : i + size]).reshape(-1, 3, 4, DIM // 12)
            yield x, torch.from_numpy(group[i : i + size])

    return again, calls


def covariance(law, j=0):
    vectors, rest = law.vectors[j].numpy(), law.tail[j].item()
    values = law.values[j].numpy()
    return (vectors * (values - rest)) @ vectors.T + rest * np.eye(DIM)


def test_batches_give_the_moments_of_all_data():
    law = fit_gaussian(batches()[0])
    np.testing.assert_allclose(law.means[0], DATA.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance(law), np.cov(DATA.T), atol=1e-10)
    assert law.log_weights.tolist() == [0.0]
    assert (np.diff(law.values[0]) <= 0).all()
    assert law.means.dtype == torch.float64


def test_each_label_has_its_own_law():
    law = fit_gaussian(batches(labels=LABELS)[0], 3)
    for j in range(3):
        own = DATA[np.equal(LABELS, j)]
        np.testing.assert_allclose(law.means[j], own.mean(0), rtol=1e-13)
        np.testing.assert_allclose(covariance(law, j), np.cov(own.T), atol=1e-10)
        assert law.log_weights[j].exp() == pytest.approx(len(own) / COUNT)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_few_directions_are_the_leading_ones_and_the_tail_is_the_rest(labels):
    groups = 1 if labels is None else 3
    again, calls = batches(labels=labels)
    low = fit_gaussian(again, groups, 8)
    # One look at where the data are, and the passes.
    assert len(calls) == 5
    whole = fit_gaussian(batches(labels=labels)[0], groups)
    assert low.vectors.shape == (groups, DIM, 8)
    np.testing.assert_allclose(low.values, whole.values[:, :8], rtol=1e-7)
    overlap = np.abs(np.einsum("jdr,jdr->jr", low.vectors, whole.vectors[:, :, :8]))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    np.testing.assert_allclose(low.tail * (DIM - 8), whole.values[:, 8:].sum(1), rtol=1e-6)
    eye = np.broadcast_to(np.eye(8), (groups, 8, 8))
    np.testing.assert_allclose(low.vectors.mT @ low.vectors, eye, atol=1e-12)


def test_where_all_directions_fit_nothing_is_random():
    again, calls = batches()
    whole = fit_gaussian(again)
    assert len(calls) == 2
    for rank in (DIM - 3, DIM, 5 * DIM):
        low = fit_gaussian(batches()[0], rank=rank)
        kept = min(rank, DIM)
        assert torch.equal(low.values, whole.values[:, :kept])
        expected = whole.values[0, kept:].mean().item() if kept < DIM else 0.0
        assert low.tail.item() == pytest.approx(expected, rel=1e-6)


def test_no_direction_leaves_a_ball():
    law = fit_gaussian(batches()[0], rank=0)
    assert law.vectors.shape == (1, DIM, 0)
    assert law.tail.item() == pytest.approx(np.trace(np.cov(DATA.T)) / DIM)


def test_what_is_no_data_for_a_covariance_is_refused():
    lonely = np.where(np.arange(COUNT) == 7, 2, LABELS % 2)
    with pytest.raises(ValueError, match="law 2 of 3 has 1"):
        fit_gaussian(batches(labels=lonely)[0], 3)
    with pytest.raises(ValueError, match="not finite"):
        fit_gaussian(batches(np.where(np.arange(DIM) == 7, np.nan, DATA))[0])
    with pytest.raises(ValueError, match="no data"):
        fit_gaussian(list)
    with pytest.raises(ValueError, match="rank is 0 or more"):
        fit_gaussian(batches()[0], rank=-1)


def test_clusters_are_found_and_told_apart():
    centres = 5 * np.eye(3, DIM)
    data = torch.from_numpy(centres[LABELS] + 0.1 * RNG.normal(size=(COUNT, DIM)))
    group = clusters(data.reshape(-1, 1, 6, 10), 3)
    found = group(data)
    pairs = {*zip(found.tolist(), LABELS.tolist(), strict=True)}
    assert len(pairs) == 3
    assert torch.equal(clusters(data, 3)(data[:7]), found[:7])
    with pytest.raises(ValueError, match="4 clusters of 3 samples"):
        clusters(data[:3], 4)
