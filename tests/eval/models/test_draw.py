from __future__ import annotations

import pytest
import torch
from fewstep import samplers
from fewstep.eval.models import Draw, label_rule
from fewstep.eval.models import draw as draw_module

SHAPE = (1, 2, 2)


def rule(value, classes=10, seeds=range(5, 30)):
    return label_rule(value, classes, SHAPE, seeds, "cpu")


def test_balanced_labels_follow_the_seed():
    assert rule("balanced").tolist() == [seed % 10 for seed in range(5, 30)]
    assert rule("balanced").dtype == torch.long


def test_random_labels_are_those_of_the_streams():
    assert torch.equal(rule("random"), samplers.random_labels(10, SHAPE, range(5, 30)))


def test_one_number_is_for_all():
    assert rule(3).tolist() == [3] * 25


def test_labels_have_their_shares_and_are_independent():
    found = rule((3.0, 0.0, 1.0, 6.0), 4, range(2**32 - 4000, 2**32 + 4000))
    assert found.dtype == torch.long
    shares = torch.tensor([0.3, 0.0, 0.1, 0.6])
    counts = torch.bincount(found, minlength=4) / 8000
    torch.testing.assert_close(counts, shares, rtol=0, atol=0.02)
    # Stratified ones would vary less from block to block.
    blocks = (found == 0).reshape(400, 20).sum(1).double()
    assert float(blocks.var()) == pytest.approx(20 * 0.3 * 0.7, rel=0.2)
    assert rule((3, 0, 1, 6), 4, [2**32 - 3]).item() == found[3997]


def test_a_class_without_a_share_is_never_drawn(monkeypatch):
    monkeypatch.setattr(draw_module, "uniform", lambda seeds, *_: torch.tensor([[1 - 2.0**-53]]))
    assert rule((0.1,) * 3 + (0.0,), 4, [0]).item() == 2


def test_a_model_without_classes_has_no_labels():
    assert rule("balanced", None) is None
    assert rule("random", None) is None


@pytest.mark.parametrize(
    ("value", "classes", "said"),
    [
        ("some", 10, "labels are balanced, random or one number, not 'some'"),
        ("some", None, "labels are balanced, random or one number, not 'some'"),
        (True, 10, "not True"),
        (10, 10, "label 10 is not one of 0 to 9"),
        (-1, 10, "label -1 is not one of 0 to 9"),
        (0, None, "label 0: this model has no classes"),
        ((1.0, 2.0), 3, r"\[1.0, 2.0\] are not shares of 3 classes"),
        ((1.0, -2.0, 3.0), 3, "none below 0"),
        ((0.0, 0.0), 2, "not all 0"),
        ((1.0, float("nan")), 2, "not shares"),
        ((1.0, 2.0), None, "not shares of no classes"),
    ],
)
def test_bad_rules_are_refused(value, classes, said):
    with pytest.raises(ValueError, match=said):
        rule(value, classes)


def test_a_part_keeps_seeds_and_labels_together():
    draw = Draw(range(10), torch.arange(10) + 100, 2.0, "cuda")
    part = draw.part(slice(3, 5))
    assert list(part.seeds) == [3, 4]
    assert part.labels.tolist() == [103, 104]
    assert (part.guidance, part.source) == (2.0, "cuda")
    assert Draw([7, 8]).part(slice(1, 2)).labels is None
