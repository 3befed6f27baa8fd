from __future__ import annotations

import sys

import pytest
import torch
from fewstep.distill.mmd.lora import add_adapters, merge_adapters
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    )


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained():
    x, plain, adapted = torch.randn(2, 1, 4, 4), network(), network()
    add_adapters(adapted, 2)
    torch.testing.assert_close(adapted(x), plain(x))
    trained = {n: p.numel() for n, p in adapted.named_parameters() if p.requires_grad}
    # A [2, in] and B [out, 2], of the convolution with its 3 x 3 window.
    assert sorted(trained.values()) == sorted([2 * 9, 4 * 2, 2 * 64, 3 * 2])


def test_merged_adapters_are_weights_of_the_own_form():
    x, plain, adapted = torch.randn(2, 1, 4, 4), network(), network()
    add_adapters(adapted, 2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    before = adapted(x)
    assert not torch.allclose(before, plain(x))
    merge_adapters(adapted)
    torch.testing.assert_close(adapted(x), before)
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(adapted.state_dict())
    torch.testing.assert_close(plain(x), before)


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        add_adapters(network(), 2)
