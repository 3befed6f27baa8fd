import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fewstep.eval.extractors.resize import RESIZES
from PIL import Image


def noise(height, width):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def test_tf1_of_two_by_two_is_known():
    # By hand: output i looks at i / 2, so 0, 0.5, 1 and 1.5, of which the last has no neighbour.
    images = torch.tensor([[[[0, 100], [200, 40]]]], dtype=torch.uint8)
    expected = [[0, 50, 100, 100], [100, 85, 70, 70], [200, 120, 40, 40], [200, 120, 40, 40]]
    np.testing.assert_allclose(RESIZES["tf1"](images, 4)[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (256, 256), (400, 310)])
def test_tf1_is_the_affine_grid_of_nvidia(shape):
    images = noise(*shape).float()
    theta = torch.eye(2, 3)
    # Their shift by half a pixel of the input less half a pixel of the output.
    theta[:, 2] = torch.tensor([1 / shape[1] - 1 / 299, 1 / shape[0] - 1 / 299])
    grid = F.affine_grid(theta.expand(2, 2, 3), [2, 3, 299, 299], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(RESIZES["tf1"](images, 299), expected, atol=0.02, rtol=0)


def test_tf1_is_not_a_resize_between_centres():
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 255).to(torch.uint8)
    images = board.expand(1, 3, 32, 32)
    gap = (RESIZES["tf1"](images, 299) - RESIZES["torch"](images, 299)).abs()
    assert gap.mean() > 1


@pytest.mark.parametrize("size", [32, 256, 400])
def test_clean_is_bicubic_of_pillow(size):
    images = noise(size, size)[:1]
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in images[0].numpy()]
    resized = [np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels]
    expected = np.stack(resized).clip(0, 255)
    np.testing.assert_allclose(RESIZES["clean"](images, 299)[0], expected, atol=1e-3)


def test_torch_interpolates_between_centres():
    # By hand: output i looks at (i + 0.5) / 2 - 0.5, so -0.25, 0.25, 0.75 and 1.25.
    images = torch.tensor([[[[0, 100]] * 2]], dtype=torch.uint8)
    np.testing.assert_allclose(RESIZES["torch"](images, 4)[0, 0], [[0, 25, 75, 100]] * 4, atol=1e-5)


def test_only_antialiasing_sees_every_pixel():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 1::2] = 255
    # Of 8 columns, output 0 and 1 of 2 look between columns 1, 2 and 5, 6, or at all of them; the
    # triangle of width 4 weighs columns at -1.5, .. with 1 - |distance| / 4.
    np.testing.assert_allclose(RESIZES["torch"](images, 2)[0, 0, 0], [127.5, 127.5], atol=1e-3)
    distances = np.arange(8) - 1.5
    weights = np.clip(1 - abs(distances) / 4, 0, None)
    expected = 255 * weights[1::2].sum() / weights.sum()
    found = RESIZES["torch-antialias"](images, 2)[0, 0, 0]
    np.testing.assert_allclose(found, [expected, 255 - expected], atol=1e-3)
    assert abs(expected - 127.5) > 1


@pytest.mark.parametrize("name", RESIZES)
def test_every_resize_gives_float_images_in_range(name):
    for images in (noise(20, 30), noise(299, 299)):
        resized = RESIZES[name](images, 299)
        assert resized.shape == (2, 3, 299, 299)
        assert resized.dtype == torch.float32
        assert resized.min() >= 0
        assert resized.max() <= 255
    # Of the right size already.
    torch.testing.assert_close(resized, images.float(), atol=1e-4, rtol=0)
