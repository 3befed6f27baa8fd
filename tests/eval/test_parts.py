from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.eval.parts import Batch, png_path, read_pngs, write_pngs


@pytest.fixture
def written(tmp_path):
    """The images of the seeds 0 and 1 as PNG files below `tmp_path`, with their checksums."""
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    made = write_pngs(Batch(slice(0, 2), np.arange(2), images, tmp_path))
    return images, made["checksums"]


def test_pngs_are_read_as_they_were_written(written, tmp_path):
    images, checksums = written
    assert torch.equal(read_pngs(tmp_path, range(2), checksums), images)


def changed(content):
    # Said to be shorter than it is: the next chunk begins in the midst of its values.
    at = content.index(b"IDAT") - 1
    return content[:at] + b"\x09" + content[at + 1 :]


@pytest.mark.parametrize("damage", [changed, lambda content: content[:-40], lambda content: b""])
def test_pngs_that_were_damaged_are_none(written, tmp_path, damage):
    _, checksums = written
    path = png_path(tmp_path, 1)
    path.write_bytes(damage(path.read_bytes()))
    assert read_pngs(tmp_path, range(2), checksums) is None


def test_another_image_of_the_same_shape_is_noticed(written, tmp_path):
    _, checksums = written
    one, other = (png_path(tmp_path, seed) for seed in range(2))
    one.write_bytes(other.read_bytes())
    assert read_pngs(tmp_path, range(2), checksums) is None
