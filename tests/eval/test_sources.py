from __future__ import annotations

import io
import json
import os
import sys
from types import MappingProxyType
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from fewstep import zoo
from fewstep.eval.images import quantise
from fewstep.eval.sources import open_images
from PIL import Image

from .exact import random_pixels


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def everything(source, size=None, batch=100):
    return torch.cat(list(open_images(str(source), size).batches(batch)))


@pytest.fixture
def folder(tmp_path):
    """Five RGB images, the second in a folder of its own; written out of order."""
    pixels = random_pixels(5, channels=3)
    names = ["a/0.png", "b/1.png", "c.png", "d.png", "e.png"]
    for i in (3, 0, 4, 1, 2):
        save(tmp_path / "set" / names[i], pixels[i])
    (tmp_path / "set" / "notes.txt").write_text("no image")
    return tmp_path / "set", torch.from_numpy(pixels.transpose(0, 3, 1, 2))


def test_a_folder_is_read_in_order_of_names(folder, monkeypatch):
    path, pixels = folder
    assert torch.equal(everything(path, batch=2), pixels)
    found = open_images(str(path))
    assert (found.count, found.lossy) == (5, False)
    assert torch.equal(found.read([4, 0]), pixels[[4, 0]])
    listed = type(path).rglob
    monkeypatch.setattr(type(path), "rglob", lambda *each: reversed(list(listed(*each))))
    assert torch.equal(everything(path), pixels)


def test_a_zip_is_read_as_its_folder(folder, tmp_path):
    path, pixels = folder
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for each in sorted(path.rglob("*"), reverse=True):
            archive.write(each, each.relative_to(path))
    assert torch.equal(everything(tmp_path / "a.zip"), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_read_in_either_layout(channels, tmp_path):
    last = random_pixels(6, channels)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "adm.npz", arr_0=last, arr_1=np.arange(6))
    np.savez(tmp_path / "first.npz", images=first)
    np.save(tmp_path / "plain.npy", last)
    for name in ("adm.npz", "first.npz", "plain.npy"):
        found = everything(tmp_path / name, batch=4)
        assert np.array_equal(found, first), name


def test_gray_arrays_need_no_channels(tmp_path):
    np.save(tmp_path / "a.npy", random_pixels(3)[..., 0])
    assert everything(tmp_path / "a.npy").shape == (3, 1, 8, 8)


def test_the_bundled_digits():
    found = open_images("mnist")
    assert torch.equal(found.read([7, 3]), quantise(zoo.mnist().images[[7, 3]]))


def test_the_identity_changes_with_the_images(folder, tmp_path):
    path, pixels = folder
    before = open_images(str(path)).identity
    assert open_images(str(path)).identity == before
    assert open_images(str(path), 4).identity != before
    old = (path / "d.png").stat()
    save(path / "d.png", 255 - pixels[3].permute(1, 2, 0).numpy())
    os.utime(path / "d.png", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    changed = open_images(str(path)).identity
    assert changed != before
    (path / "e.png").rename(path / "f.png")
    assert open_images(str(path)).identity not in (before, changed)


def test_the_identity_of_archives_and_arrays_is_that_of_the_content(tmp_path):
    marks = []
    for value in (0, 1, 1):
        with ZipFile(tmp_path / "a.zip", "w") as archive:
            buffer = io.BytesIO()
            Image.new("L", (2, 2), value).save(buffer, format="PNG")
            archive.writestr("0.png", buffer.getvalue())
        np.save(tmp_path / "a.npy", np.full((2, 2, 2, 1), value, np.uint8))
        marks.append([open_images(str(tmp_path / each)).identity for each in ("a.zip", "a.npy")])
    assert marks[1] == marks[2]
    assert not set(marks[0]) & set(marks[1])


def test_images_of_one_colour_are_gray_only_if_all_are(tmp_path):
    gray, colour = random_pixels(2)[..., 0], random_pixels(1, 3)[0]
    save(tmp_path / "0.png", gray[0])
    save(tmp_path / "1.png", gray[1])
    assert everything(tmp_path).shape == (2, 1, 8, 8)
    save(tmp_path / "2.png", colour)
    found = everything(tmp_path)
    assert torch.equal(found[0], torch.from_numpy(gray[0]).expand(3, 8, 8))
    assert torch.equal(found[2], torch.from_numpy(colour).permute(2, 0, 1))


def test_palettes_and_transparency_become_plain_colours(tmp_path):
    colour = random_pixels(1, 3)[0] // 128 * 255
    plain = Image.fromarray(colour)
    plain.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "0.png")
    see_through = np.concatenate([colour, random_pixels(1)[0]], 2)
    save(tmp_path / "1.png", see_through)
    found = everything(tmp_path)
    wanted = torch.from_numpy(colour).permute(2, 0, 1)
    assert torch.equal(found, torch.stack([wanted, wanted]))


def test_jpeg_files_are_said_to_be_lossy(tmp_path):
    save(tmp_path / "0.png", random_pixels(1, 3)[0])
    assert not open_images(str(tmp_path)).lossy
    save(tmp_path / "1.JPG", random_pixels(1, 3)[0], format="JPEG")
    assert open_images(str(tmp_path)).lossy


def test_size_cuts_the_central_square_and_resizes(tmp_path):
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = 200
    save(tmp_path / "0.png", wide)
    assert torch.equal(everything(tmp_path, 2), torch.full((1, 3, 2, 2), 200, dtype=torch.uint8))
    picture = random_pixels(1, 3, 12)[0]
    save(tmp_path / "0.png", picture)
    resized = Image.fromarray(picture).resize((5, 5), Image.Resampling.BICUBIC)
    assert np.array_equal(everything(tmp_path, 5)[0], np.asarray(resized).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_size_is_the_same_for_arrays_and_files(channels, tmp_path):
    pixels = random_pixels(3, channels, 12)
    np.save(tmp_path / "a.npy", pixels)
    for i, each in enumerate(pixels):
        save(tmp_path / "set" / f"{i}.png", each.squeeze())
    found = everything(tmp_path / "a.npy", 5)
    assert found.shape == (3, channels, 5, 5)
    assert torch.equal(found, everything(tmp_path / "set", 5))


def test_mixed_sizes_name_the_files(tmp_path):
    save(tmp_path / "0.png", random_pixels(1, 3)[0])
    save(tmp_path / "1.png", random_pixels(1, 3, 9)[0, :, :7])
    with pytest.raises(ValueError, match=r"1\.png is 7 x 9, .*0\.png is 8 x 8.*--size"):
        everything(tmp_path)
    assert everything(tmp_path, 8).shape == (2, 3, 8, 8)


def deep(path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


def truncated(path):
    save(path, random_pixels(1, 3, 64)[0])
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "no image that can be read"),
        (lambda path: path.write_text("hello"), "no image that can be read"),
        (lambda path: path.write_bytes(b""), "no image that can be read"),
        (deep, "mode I;16 instead of 8 bits"),
    ],
)
def test_what_is_no_image_is_named(spoil, message, tmp_path):
    save(tmp_path / "0.png", random_pixels(1, 3, 64)[0])
    spoil(tmp_path / "7.png")
    with pytest.raises(ValueError, match=rf"7\.png is.*{message}"):
        everything(tmp_path)


def test_damaged_archives_are_refused(folder, tmp_path):
    path, _ = folder
    whole = tmp_path / "a.zip"
    with ZipFile(whole, "w") as archive:
        for each in sorted(path.rglob("*.png")):
            archive.write(each, each.name)
    data = bytearray(whole.read_bytes())
    (tmp_path / "short.zip").write_bytes(data[:300])
    with pytest.raises(ValueError, match=r"short\.zip is no zip archive"):
        open_images(str(tmp_path / "short.zip"))
    at = data.find(b"IDAT") + 8
    data[at] ^= 255
    whole.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.png is no image that can be read"):
        everything(whole)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "float32: images must be uint8"),
        (np.zeros((2, 4, 4, 5), np.uint8), r"shape \[2, 4, 4, 5\]"),
        (np.zeros((2, 4), np.uint8), r"shape \[2, 4\]"),
        (np.array([None]), "damaged"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, message, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=array)
    np.save(tmp_path / "a.npy", array)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(ValueError, match=message):
            open_images(str(tmp_path / name))


def test_array_files_without_images_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.zeros(3))
    with pytest.raises(ValueError, match="has labels, but none of arr_0, images, pixels"):
        open_images(str(tmp_path / "a.npz"))
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    (tmp_path / "c.npy").write_bytes(b"")
    for name in ("b.npz", "c.npy"):
        with pytest.raises(ValueError, match="damaged"):
            open_images(str(tmp_path / name))


def test_nothing_is_not_found(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="holds no images"):
        open_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_images(str(tmp_path / "nope"))
    np.save(tmp_path / "a.npy", np.zeros((0, 4, 4, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"no images, but an array \[0"):
        open_images(str(tmp_path / "a.npy"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError, match="pip install datasets"):
        open_images("hf:cifar10")


def test_other_things_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="give a folder"):
        open_images(str(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match="1 x 1 pixels at least, not 0"):
        open_images("mnist", 0)


def test_a_data_set_of_the_hub_gives_its_column_of_images(monkeypatch):
    pixels = random_pixels(3, 3)

    class Table(list):
        features = MappingProxyType({"label": 0, "picture": "image"})

    table = Table({"picture": Image.fromarray(each), "label": 1} for each in pixels)
    asked = []

    class Datasets:
        Image = str

        @staticmethod
        def load_dataset(name, split):
            asked.append((name, split))
            return table

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    found = open_images("hf:some/set:test").read([2, 0])
    assert np.array_equal(found, pixels[[2, 0]].transpose(0, 3, 1, 2))
    open_images("hf:some/set")
    assert asked == [("some/set", "test"), ("some/set", "train")]
    Table.features = {"label": 0}
    with pytest.raises(ValueError, match="no column of images, only label"):
        open_images("hf:some/set")


def test_classes_are_told_beside_the_files(tmp_path):
    """As in EDM's data sets, whose folders are parts: in a folder and in its archive."""
    files = ["00000/b.png", "00000/c.png", "00001/a.png"]
    for i, name in enumerate(files):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * i).save(tmp_path / "set" / name)
    told = tmp_path / "set" / "dataset.json"

    def opened(text):
        told.write_text(text)
        with ZipFile(tmp_path / "set.zip", "w") as archive:
            for name in (*files, "dataset.json"):
                archive.write(tmp_path / "set" / name, name)
        return [open_images(str(tmp_path / each)) for each in ("set", "set.zip")]

    pairs = list(zip(files, (2, 0, 2), strict=True))
    for found in opened(json.dumps({"labels": pairs[::-1]})):
        assert found.labels is not None
        assert found.labels.tolist() == [2, 0, 2]
        assert found.classes == ("0", "1", "2")
    vectors = json.dumps({"labels": [[file, [0.0, 1.0]] for file in files]})
    for found in (*opened('{"labels": null}'), *opened(vectors)):
        assert found.labels is None
        assert found.classes == ()
    for text, match in (
        (json.dumps({"labels": pairs[1:]}), "no label of 00000/b.png, nor of 0 others"),
        ("[1, 2]", "tells no labels"),
        ("{", "tells no labels"),
    ):
        with pytest.raises(ValueError, match=match):
            opened(text)
