from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.eval.images import dequantise, quantise, save_grid, thumbnails, tile
from PIL import Image


def test_quantise_rounds_and_clips():
    x = torch.tensor([-1.0, 0.0, 1.0, -7.0, 9.0, 1 / 127.5 * 0.49]).view(-1, 1, 1, 1)
    assert quantise(x).flatten().tolist() == [0, 128, 255, 0, 255, 128]
    ramp = torch.linspace(-1, 1, 100001).view(-1, 1, 1, 1)
    assert abs((dequantise(quantise(ramp)) - ramp).mean()) * 127.5 < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_quantise_is_the_formula_of_edm(seed):
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(seed))
    # Halves between two levels, where ways to round differ.
    x[:1000] = (torch.arange(1000) % 256 - 128) / 127.5
    expected = np.clip(x.numpy() * np.float32(127.5) + np.float32(128), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(quantise(x.view(-1, 1, 1, 1)).flatten(), expected)


def test_every_level_survives_a_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    assert torch.equal(quantise(dequantise(levels)), levels)


def test_a_sample_that_is_not_finite_is_named():
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 1, 1] = float("inf")
    with pytest.raises(ValueError, match="1 of 4 samples are not finite, first: 2"):
        quantise(x)


def test_tiles_run_row_by_row():
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    sheet = tile(pixels, columns=3, gap=1, paper=99)
    assert sheet.shape == (7, 13)
    assert sheet[1:3, 5:8].tolist() == [[1] * 3] * 2
    assert sheet[4:6, 1:4].tolist() == [[3] * 3] * 2
    assert (sheet[4:6, 9:12] == 99).all()


def test_a_grid_is_a_png_of_its_pixels(tmp_path):
    pixels = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8)
    save_grid(pixels, tmp_path / "a" / "grid.png", columns=2, zoom=3)
    picture = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    np.testing.assert_array_equal(picture[::3, ::3], tile(pixels, columns=2))


def test_thumbnails_shrink_what_is_large_only():
    small = torch.randint(256, (2, 3, 28, 20), dtype=torch.uint8)
    assert thumbnails(small) is small
    big = torch.zeros(1, 1, 512, 256, dtype=torch.uint8)
    big[..., :256, :] = 200
    found = thumbnails(big, 128)
    assert found.shape == (1, 1, 128, 64)
    assert found[0, 0, :64].unique().tolist() == [200]
    assert found[0, 0, 64:].unique().tolist() == [0]


def test_of_latents_the_first_three_channels_are_shown():
    latents = torch.randint(256, (3, 4, 5, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(tile(latents), tile(latents[:, :3]))
    assert tile(latents[:, :2]).ndim == 2
