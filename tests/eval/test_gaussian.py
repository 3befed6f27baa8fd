"""Normal laws of sets of images, and who may go by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import zoo
from fewstep.eval.gaussian import gaussian_from, gaussian_of, packaged, teleporting
from fewstep.eval.images import dequantise, save_image
from fewstep.eval.settings import StartConfig
from fewstep.eval.sources import in_memory, open_images

GENERATOR = torch.Generator().manual_seed(5)
PIXELS = torch.randint(256, (90, 3, 2, 4), generator=GENERATOR, dtype=torch.uint8)
LABELS = torch.arange(90) % 3


def images(labels=LABELS):
    return in_memory("some", PIXELS, labels=labels)


def test_the_law_is_of_pixels_between_minus_one_and_one():
    found = gaussian_of(images(), batch_size=7)
    x = PIXELS.flatten(1).double().numpy() / 127.5 - 1
    np.testing.assert_allclose(found.law.means[0], x.mean(0), atol=1e-6)
    vectors, values = found.law.vectors[0].numpy(), found.law.values[0].numpy()
    np.testing.assert_allclose((vectors * values) @ vectors.T, np.cov(x.T), atol=1e-6)
    assert (found.shape, found.by) == ((3, 2, 4), "all")
    assert found.origin == {"images": "some", "count": 90, "classes": []}


def test_there_is_one_law_for_each_label():
    found = gaussian_of(images(), "class", batch_size=7)
    x = dequantise(PIXELS).flatten(1).double()
    for label in range(3):
        torch.testing.assert_close(found.law.means[label], x[LABELS.eq(label)].mean(0))
    assert found.origin["classes"] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="some has no classes"):
        gaussian_of(images(None), "class")


def test_clusters_are_laws_too():
    dark = torch.where(LABELS.view(-1, 1, 1, 1) == 0, PIXELS // 8, PIXELS // 8 + 200)
    found = gaussian_of(in_memory("two", dark), "cluster", 0, count=2)
    assert sorted(found.law.log_weights.exp().tolist()) == pytest.approx([1 / 3, 2 / 3])
    assert found.by == "cluster"


def test_progress_counts_all_passes():
    seen = []
    wide = in_memory("wide", torch.zeros(90, 1, 6, 7, dtype=torch.uint8))
    gaussian_of(wide, rank=2, batch_size=45, progress=lambda *told: seen.append(told[:2]))
    assert seen == [(45 * k, 360) for k in range(1, 9)]
    seen.clear()
    gaussian_of(wide, batch_size=45, progress=lambda *told: seen.append(told[:2]))
    assert seen == [(45, 90), (90, 90)]


def test_laws_are_named_by_a_file_or_are_those_of_the_digits(tmp_path):
    found = gaussian_of(images(), "class")
    path = tmp_path / "a.safetensors"
    found.save(path)
    assert gaussian_from(str(path), classes=True).key == found.key
    gaussian_of(images()).save(path)
    with pytest.raises(ValueError, match="has no laws by class"):
        gaussian_from(str(path), classes=True)
    with pytest.raises(ValueError, match=r"laws are in a \.safetensors file"):
        gaussian_from("mnist.npz")
    digits = gaussian_from("mnist")
    assert (digits.shape, digits.by) == ((1, 28, 28), "all")
    mean = zoo.mnist().images.mean(0).flatten().double()
    torch.testing.assert_close(digits.law.means[0], mean, atol=1e-5, rtol=0)
    assert gaussian_from("mnist") is digits
    assert packaged("mnist", "all") is digits


def test_laws_of_other_samples_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    gaussian_of(images(), "class").save(path)
    asked = StartConfig(teleport=str(path), skip=3)
    assert teleporting(None, (3, 2, 4), 3) is None
    assert teleporting(asked, (3, 2, 4), 3).by == "class"
    with pytest.raises(ValueError, match=r"shape \(3, 2, 4\), and the model's have \(3, 4, 2\)"):
        teleporting(asked, (3, 4, 2), 3)
    for classes, said in ((None, "none"), (4, "4")):
        with pytest.raises(ValueError, match=f"laws of 3 classes, and the model has {said}"):
            teleporting(asked, (3, 2, 4), classes)


def test_labels_of_sets_of_images(tmp_path):
    """Folders in the order of their names, 10 after 9; labels or arr_1 of an .npz."""
    for name in ("10", "9", "2"):
        for i in range(2):
            save_image(PIXELS[i], tmp_path / "set" / name / f"{i}.png")
    found = open_images(str(tmp_path / "set"))
    assert found.classes == ("2", "9", "10")
    # Files come in the order of their paths.
    assert found.labels.tolist() == [2, 2, 0, 0, 1, 1]
    alone = open_images(str(tmp_path / "set" / "2"))
    assert alone.labels is None
    array = PIXELS.permute(0, 2, 3, 1).numpy()
    path = tmp_path / "a.npz"
    for name in ("labels", "arr_1"):
        np.savez(path, arr_0=array, **{name: LABELS.numpy().astype(np.uint8)})
        assert torch.equal(open_images(str(path)).labels, LABELS)
    np.savez(path, arr_0=array)
    assert open_images(str(path)).labels is None
    for wrong in (LABELS.numpy()[:5], LABELS.numpy() - 1, LABELS.double().numpy()):
        np.savez(path, arr_0=array, labels=wrong)
        with pytest.raises(ValueError, match="are no labels of 90 images"):
            open_images(str(path))
    assert torch.equal(open_images("mnist").labels, zoo.mnist().labels)
