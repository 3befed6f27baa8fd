from __future__ import annotations

import torch
from fewstep.eval.bench.record import between_halves


def test_halves_are_compared_where_they_have_more_members_than_dimensions():
    features = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    assert between_halves(None) is None
    assert between_halves(features[:9]) is None
    assert between_halves(features) > 0
