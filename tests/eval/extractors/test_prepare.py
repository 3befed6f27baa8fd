import pytest
import torch
from fewstep.eval.extractors.prepare import Preprocessing


def test_it_scales_and_normalises_each_channel():
    prepare = Preprocessing((0.5, 0.0, 1.0), (0.25, 1.0, 2.0))
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 4, 4)
    out = prepare(levels)
    assert out.dtype == torch.float32
    assert torch.allclose(out[1, :, 2, 3], torch.tensor([-2.0, 0.2, 0.0]))


def test_the_facts_tell_two_of_them_apart():
    def half(images, size):
        return images[..., :size, :size]

    several = [
        Preprocessing((0.5,), (0.5,)),
        Preprocessing((0.5,), (0.25,)),
        Preprocessing((0.4,), (0.5,)),
        Preprocessing((0.5,), (0.5,), 8, "corner", half),
        Preprocessing((0.5,), (0.5,), 16, "corner", half),
        Preprocessing((0.5,), (0.5,), 16, "other", half),
    ]
    assert len({str(each.facts) for each in several}) == len(several)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((0.5,), (0.5, 0.5)), "equally many"),
        (((0.5,), (0.0,)), "std > 0"),
        (((0.5,), (float("nan"),)), "std > 0"),
        (((0.5,), (0.5,), 8), "needs a resize"),
        (((0.5,), (0.5,), 0, "same", lambda images, size: images), "at least 1"),
    ],
)
def test_nonsense_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Preprocessing(*arguments)


def test_other_channels_are_refused():
    prepare = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"of 3 channels.*have 1"):
        prepare(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
