from __future__ import annotations

import pytest
import torch
from fewstep.eval.metrics import KernelDistance, Neighbours
from torchmetrics import MetricCollection


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fed(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return metric


def stored(metric):
    metric.sync()
    features, blocks, reference = metric.stored()
    return features, blocks.tolist(), reference


def test_features_and_their_blocks():
    x, y = normal(7, 3), normal(4, 3, 1)
    features, blocks, reference = stored(fed(KernelDistance(y, blocks=2), *x.split([2, 4, 1])))
    assert torch.equal(features, x.double())
    assert torch.equal(reference, y.double())
    assert blocks == [0, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_buffer_of_the_caller_is_not_kept(dtype):
    batch = normal(4, 3).to(dtype)
    metric = fed(KernelDistance(normal(9, 3)), batch)
    batch.zero_()
    assert torch.equal(stored(metric)[0], normal(4, 3).double())


def test_what_is_kept_is_float32():
    metric = fed(KernelDistance(normal(9, 3).double()), normal(4, 3).double(), normal(2, 3).half())
    assert {each.dtype for each in (*metric.features, metric.reference)} == {torch.float32}


def test_no_gradients_are_kept():
    x = normal(4, 3).requires_grad_()
    metric = KernelDistance(normal(9, 3).requires_grad_(), subsets=None)
    assert not metric(x * 2).requires_grad
    assert not any(each.requires_grad for each in stored(metric)[::2])


def test_a_batch_by_call_has_the_block_of_its_update():
    metric = KernelDistance(normal(9, 3), subsets=None)
    for part in normal(6, 3, 1).split(2):
        metric(part)
    assert stored(metric)[1] == [0, 0, 1, 1, 2, 2]


def test_reset_forgets():
    metric = fed(KernelDistance(normal(9, 3)), normal(5, 3))
    metric.compute()
    metric.reset()
    assert len(stored(metric)[0]) == 0
    features, blocks, _ = stored(fed(metric, normal(2, 3, 1)))
    assert (len(features), blocks) == (2, [0, 0])


def test_metrics_of_other_blocks_share_a_collection():
    y = normal(30, 3)
    apart = {"kernel": KernelDistance(y, subsets=None, blocks=4), "near": Neighbours(y, blocks=3)}
    together = MetricCollection({k: m.clone() for k, m in apart.items()})
    for part in normal(30, 3, 1).split(5):
        together.update(part)
        for metric in apart.values():
            metric.update(part)
    assert len(together.compute_groups) == 1
    got = together.compute()
    assert float(got["kernel"]) == float(apart["kernel"].compute())
    assert float(got["recall"]) == float(apart["near"].compute()["recall"])
    assert together["near"].estimate()["density"].sizes.tolist() == [10, 10, 10]


def test_states_are_restored_from_a_state_dict():
    y = normal(9, 3)
    metric = fed(KernelDistance(y), normal(5, 3), normal(6, 3, 1))
    metric.persistent(True)
    fresh = KernelDistance(y)
    fresh.load_state_dict(metric.state_dict())
    assert float(fed(fresh, normal(2, 3)).compute()) == float(fed(metric, normal(2, 3)).compute())


def test_a_model_in_half_precision_does_not_round_the_metric():
    y = normal(9, 3)
    holder = torch.nn.ModuleList([KernelDistance(y)]).half()
    features, _, reference = stored(fed(holder[0], normal(4, 3, 1)))
    assert torch.equal(reference, y.double())
    assert torch.equal(features, normal(4, 3, 1).double())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4, 2), r"\[N, 3\], not \[4, 2\]"),
        (torch.full((4, 3), torch.inf), "4 of 4 .* first: 0"),
        (torch.zeros(4, 3, dtype=torch.uint8), r"not torch\.uint8"),
    ],
)
def test_bad_input_is_refused(features, message):
    metric = KernelDistance(normal(9, 3))
    with pytest.raises(ValueError, match=message):
        metric.update(features)
    assert metric.features == []


def test_a_bad_reference_is_refused():
    with pytest.raises(ValueError, match="first: 1"):
        KernelDistance(torch.tensor([[0.0], [torch.nan]]))
    with pytest.raises(ValueError, match="blocks must be at least 1, not -1"):
        Neighbours(normal(9, 3), blocks=-1)
