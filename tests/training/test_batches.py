from __future__ import annotations

import torch
from fewstep.training import shuffled


def test_every_sample_comes_once_before_any_comes_twice():
    batches = [shuffled(10, 4, 0, step) for step in range(5)]
    assert all(len(each) == 4 for each in batches)
    whole = torch.cat(batches)
    assert sorted(whole[:10].tolist()) == sorted(whole[10:].tolist()) == list(range(10))
    assert whole[:10].tolist() != whole[10:].tolist()
    assert torch.equal(shuffled(10, 4, 0, 3), batches[3])
    assert not torch.equal(shuffled(10, 10, 1, 0), shuffled(10, 10, 0, 0))
