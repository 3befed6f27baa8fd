from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from fewstep.eval.metrics import FrechetDistance, Moments, difference, frechet_distance, moments
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fed(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_streaming_equals_one_shot(batch):
    reference, x = moments(normal(400, 8, 1)), normal(500, 8, 2) + 0.3
    metric = fed(FrechetDistance(reference), *x.float().split(batch))
    expected = frechet_distance(moments(x.float()), reference)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-10)
    assert metric.compute().dtype == torch.float64


def test_moments_over_several_strips():
    # 128 columns are added at a time; 300 end in a strip of 44.
    x = normal(60, 300)
    known = Moments(None, torch.ones(300).double(), torch.eye(300).double())
    got = fed(FrechetDistance(known, blocks=2), *x.split(25)).moments()
    torch.testing.assert_close(got.cov, x.T.cov(), rtol=0, atol=1e-13)
    torch.testing.assert_close(got.mean, x.mean(0), rtol=0, atol=1e-15)


def test_update_u_goes_to_block_u_and_one_can_be_left_out():
    batches = [normal(n, 3, n) for n in (5, 6, 7, 8)]
    metric = fed(FrechetDistance(moments(normal(50, 3)), blocks=3), *batches)
    assert metric.count.tolist() == [13, 6, 7]
    expected = moments(torch.cat([batches[0], batches[2], batches[3]]))
    got = metric.moments(without=1)
    assert got.n == expected.n
    torch.testing.assert_close(got.mean, expected.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(got.cov, expected.cov, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_states_are_those_of_one_process(order):
    reference, y = moments(normal(300, 8, 1)), normal(500, 8, 2) * 1.2
    whole = frechet_distance(moments(y), reference)
    # One process may have had no batch at all.
    parts = [FrechetDistance(reference, blocks=4) for _ in range(3)]
    for metric, part in zip(parts, y.split([120, 380, 0]), strict=True):
        fed(metric, *(part.split(50) if len(part) else []))
    first, *rest = (parts[k] for k in order)
    for other in rest:
        first.merge_state(other)
    assert frechet_distance(first.moments(), reference) == pytest.approx(whole, rel=1e-9)


def test_a_large_mean_does_not_matter():
    x, y = normal(300, 8, 1), normal(500, 8, 2) * 1.2
    expected = frechet_distance(moments(y), moments(x))
    metric = fed(FrechetDistance(moments(x + 1e5)), *(y + 1e5).split(64))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("d", "n"), [(64, 500), (128, 100)])
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_torchmetrics_finds_the_same(d, n):
    real, fake = normal(600, d, 1).float() + 0.4, normal(n, d, 2).float() * 1.1 + 0.5
    identity = torch.nn.Identity()
    identity.num_features = d
    theirs = FrechetInceptionDistance(feature=identity)
    theirs.inception.num_features = d
    for part in real.split(64):
        theirs.update(part, real=True)
    for part in fake.split(64):
        theirs.update(part, real=False)
    ours = fed(FrechetDistance(moments(real)), *fake.split(64))
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_half_precision_is_read_exactly():
    reference, x = moments(normal(99, 4, 1)), (normal(50, 4) + 20).half()
    got = fed(FrechetDistance(reference), x).moments()
    torch.testing.assert_close(got.cov, x.double().T.cov(), rtol=0, atol=1e-12)


def test_a_batch_by_call_goes_to_its_block_and_has_its_own_value():
    reference, batches = moments(normal(99, 4, 1)), normal(60, 4, 2).split(20)
    metric = FrechetDistance(reference, blocks=5)
    values = [float(metric(batch)) for batch in batches]
    alone = [frechet_distance(moments(batch), reference) for batch in batches]
    assert values == pytest.approx(alone, rel=1e-10)
    assert metric.count.tolist() == [20, 20, 20, 0, 0]
    expected = frechet_distance(moments(torch.cat(batches)), reference)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-10)


def test_reset_forgets():
    reference, x = moments(normal(99, 4, 1)), normal(50, 4, 2)
    metric = fed(FrechetDistance(reference), normal(30, 4, 3) * 5, normal(20, 4, 4))
    metric.reset()
    assert int(metric.count.sum()) == 0
    assert float(fed(metric, x).compute()) == float(fed(FrechetDistance(reference), x).compute())
    assert metric.count[0] == 50


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_alone(copied):
    x, y = normal(50, 4, 2), normal(60, 4, 3)
    metric = fed(FrechetDistance(moments(normal(99, 4, 1))), x)
    other = fed(copied(metric), y)
    assert other.count[:2].tolist() == [50, 60]
    assert metric.count[:2].tolist() == [50, 0]
    assert float(other.compute()) == float(fed(metric, y).compute())


def test_states_are_restored_from_a_state_dict():
    reference = moments(normal(99, 4, 1))
    metric = fed(FrechetDistance(reference), *normal(90, 4, 2).split(30))
    metric.persistent(True)
    fresh = FrechetDistance(reference)
    fresh.load_state_dict(metric.state_dict())
    fed(metric, normal(5, 4, 9)), fed(fresh, normal(5, 4, 9))
    assert float(fresh.compute()) == pytest.approx(float(metric.compute()), rel=1e-12)


def test_a_model_in_half_precision_does_not_round_the_metric():
    x = normal(50, 4, 2)
    metric = FrechetDistance(moments(normal(99, 4, 1) + 1000))
    holder = torch.nn.ModuleList([metric]).half()
    expected = fed(FrechetDistance(metric.reference), x + 1000).compute()
    assert float(fed(holder[0], x + 1000).compute()) == float(expected)


def test_another_device():
    metric = FrechetDistance(moments(normal(99, 4, 1)))
    assert metric.to("meta").outer.device.type == "meta"
    assert metric.reference.to(metric.device).factor.device.type == "meta"


def test_a_collection_of_references():
    known = {name: moments(normal(99, 4, seed) + seed) for seed, name in enumerate("ab")}
    metrics = MetricCollection({name: FrechetDistance(each) for name, each in known.items()})
    x = normal(90, 4, 2)
    for part in x.split(30):
        metrics.update(part)
    got = metrics.compute()
    for name, each in known.items():
        assert float(got[name]) == pytest.approx(frechet_distance(moments(x), each), rel=1e-10)


def test_the_estimate_leaves_blocks_out():
    reference, batches = moments(normal(99, 4, 1)), normal(200, 4, 2).split([60, 40, 70, 30])
    metric = fed(FrechetDistance(reference, blocks=6), *batches)
    value = float(metric.compute())
    got = metric.estimate()
    assert got.value == value
    assert got.sizes.tolist() == [60, 40, 70, 30]
    for k, replicate in enumerate(got.replicates):
        rest = torch.cat([part for j, part in enumerate(batches) if j != k])
        assert replicate == pytest.approx(frechet_distance(moments(rest), reference), rel=1e-10)
    assert float(metric.compute()) == value


def test_the_estimate_warns_once():
    metric = fed(
        FrechetDistance(moments(normal(99, 8, 1)), blocks=2), normal(4, 8), normal(4, 8, 2)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        metric.estimate()
    assert [str(each.message)[:31] for each in said] == ["Frechet distance from 8 samples"]


def test_the_error_is_that_of_fresh_sets_and_the_bias_goes():
    d, n = 16, 1000
    scale = torch.linspace(0.5, 2, d).double()
    known = Moments(10**6, torch.zeros(d).double(), torch.diag(scale**2))
    truth = frechet_distance(
        Moments(10**6, known.mean + 0.05, torch.diag((1.1 * scale) ** 2)), known
    )
    sets = [1.1 * scale * normal(n, d, seed) + 0.05 for seed in range(40)]
    found = [fed(FrechetDistance(known, blocks=20), *x.split(n // 20)).estimate() for x in sets]
    spread = np.std([each.value for each in found], ddof=1)
    assert spread / 2 < np.mean([each.error for each in found]) < spread * 2
    biased = abs(np.mean([each.value for each in found]) - truth)
    assert abs(np.mean([each.corrected for each in found]) - truth) < biased / 4


def test_a_paired_difference_has_the_smaller_error():
    d = 16
    known = moments(normal(5000, d, 1))
    x = normal(1000, d, 2) * 1.1
    y = x + 0.1 * normal(1000, d, 3) + 0.02
    a, b, fresh = (
        fed(FrechetDistance(known, blocks=20), *z.split(50)).estimate()
        for z in (x, y, normal(1000, d, 4) * 1.1)
    )
    assert difference(b, a).value == b.value - a.value
    assert difference(b, a).error < 0.5 * difference(b, fresh).error


def test_bad_input_is_refused():
    metric = FrechetDistance(moments(normal(50, 4)))
    with pytest.raises(ValueError, match="first: 2"):
        metric.update(torch.tensor([[0.0] * 4, [1.0] * 4, [float("nan")] * 4]))
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        metric.update(normal(5, 3))
    assert int(metric.count.sum()) == 0
    with pytest.raises(ValueError, match="blocks must be at least 1, not 0"):
        FrechetDistance(metric.reference, blocks=0)


def test_too_few_samples_are_refused():
    metric = fed(FrechetDistance(moments(normal(50, 4)), blocks=2), normal(0, 4), normal(1, 4))
    with pytest.raises(ValueError, match=r"at least 2 samples, got 1$"):
        metric.compute()
    with pytest.raises(ValueError, match="at least 2 samples, got 1 without block 0"):
        fed(metric, normal(1, 4)).estimate()
