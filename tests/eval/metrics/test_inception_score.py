from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from fewstep.eval.metrics import InceptionScore
from scipy.special import log_softmax


def logits(n, classes, seed=0, scale=3.0):
    return scale * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def score(part):
    log_p = log_softmax(part.double().numpy(), axis=1)
    p = np.exp(log_p)
    divergence = (p * (log_p - np.log(p.mean(0)))).sum(1)
    return math.exp(divergence.mean())


def fed(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric


def test_against_the_formula():
    x = logits(100, 7)
    metric = fed(InceptionScore(7, splits=5, blocks=10), *x.split(10))
    scores = [score(part) for part in x.split(20)]
    mean, spread = metric.spread()
    assert float(mean) == pytest.approx(np.mean(scores), rel=1e-12)
    assert float(spread) == pytest.approx(np.std(scores, ddof=0), rel=1e-12)
    assert float(metric.compute()) == float(mean)
    assert metric.compute().dtype == torch.float64


def test_identical_logits_score_1():
    metric = fed(InceptionScore(5, splits=2, blocks=4), *logits(1, 5).repeat(40, 1).split(10))
    assert [float(each) for each in metric.spread()] == pytest.approx([1, 0], abs=1e-12)


def test_balanced_certain_classes_score_their_number():
    certain = 1e4 * torch.eye(8).repeat(10, 1)
    metric = fed(InceptionScore(8, splits=10, blocks=10), *certain.split(8))
    assert float(metric.compute()) == pytest.approx(8, rel=1e-12)


def test_certain_classes_of_uneven_shares_score_their_entropy():
    certain = 1e4 * torch.eye(3)[[0, 0, 1, 1, 1, 1, 2, 2]]
    metric = fed(InceptionScore(3, splits=1, blocks=1), certain)
    assert float(metric.compute()) == pytest.approx(2**1.5, rel=1e-12)


def test_sorted_classes_score_less_than_shuffled_ones():
    in_order = 1e4 * torch.eye(10).repeat_interleave(10, 0)
    shuffled = in_order[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    found = [
        float(fed(InceptionScore(10, splits=10, blocks=10), *x.split(10)).compute())
        for x in (in_order, shuffled)
    ]
    assert found[0] == pytest.approx(1)
    assert found[1] > 4


def test_one_split_does_not_depend_on_batches():
    x = logits(60, 7)
    found = [
        float(fed(InceptionScore(7, splits=1, blocks=5), *x.split(size)).compute())
        for size in (1, 7, 60)
    ]
    assert found == pytest.approx([score(x)] * 3, rel=1e-12)


def test_splits_without_samples_do_not_count():
    x = logits(20, 7)
    metric = fed(InceptionScore(7, splits=10, blocks=20), x)
    assert float(metric.compute()) == pytest.approx(score(x), rel=1e-12)


def test_the_estimate_leaves_blocks_out():
    x = logits(90, 7)
    parts = x.split([20, 30, 15, 25])
    metric = fed(InceptionScore(7, splits=2, blocks=4), *parts)
    value = float(metric.compute())
    got = metric.estimate()
    assert got.value == pytest.approx(value, rel=1e-12)
    assert got.sizes.tolist() == [20, 30, 15, 25]
    expected = np.mean([score(parts[0]), score(x[50:])])
    assert got.replicates[1] == pytest.approx(expected, rel=1e-12)
    expected = np.mean([score(x[:50]), score(parts[3])])
    assert got.replicates[2] == pytest.approx(expected, rel=1e-12)


def test_the_error_is_that_of_fresh_sets():
    found = [
        fed(InceptionScore(5, splits=1), *logits(400, 5, seed).split(20)).estimate()
        for seed in range(40)
    ]
    spread = np.std([each.value for each in found], ddof=1)
    assert spread / 2 < np.mean([each.error for each in found]) < spread * 2


def test_a_batch_by_call_goes_to_its_block_and_has_its_own_value():
    metric, parts = InceptionScore(7, splits=1, blocks=4), logits(40, 7).split(20)
    assert [float(metric(part)) for part in parts] == pytest.approx([score(p) for p in parts])
    assert metric.count.tolist() == [20, 20, 0, 0]


def test_copies_and_reset():
    metric = fed(InceptionScore(7, splits=1), logits(40, 7))
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert float(other.compute()) == float(metric.compute())
    metric.reset()
    assert float(fed(metric, logits(30, 7, 1)).compute()) == pytest.approx(score(logits(30, 7, 1)))


def test_half_precision_is_read_exactly():
    x = logits(50, 7).half()
    got = fed(InceptionScore(7, splits=1), x).compute()
    assert float(got) == pytest.approx(score(x), rel=1e-12)


def test_bad_input_is_refused():
    metric = InceptionScore(7)
    with pytest.raises(ValueError, match=r"\[N, 7\], not \[3, 6\]"):
        metric.update(logits(3, 6))
    with pytest.raises(ValueError, match=r"1 of 3 .* first: 1"):
        metric.update(torch.tensor([[0.0] * 7, [-math.inf] * 7, [0.0] * 7]))
    with pytest.raises(ValueError, match=r"blocks \(20\) must be a multiple of splits \(3\)"):
        InceptionScore(7, splits=3)
    with pytest.raises(ValueError, match="blocks must be at least 1"):
        InceptionScore(7, blocks=0)


def test_nothing_has_no_score():
    with pytest.raises(ValueError, match="at least 1 sample"):
        fed(InceptionScore(7), logits(0, 7)).compute()
    with pytest.raises(ValueError, match="at least 1 sample"):
        InceptionScore(7).estimate()
