"""Sets of images: where real ones, or ones made before, come from."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import zoo
from ..storage import digest
from .images import Pixels, quantise

SUFFIXES = (".png", ".bmp", ".webp", ".jpg", ".jpeg", ".ppm", ".tif", ".tiff")
LOSSY = (".jpg", ".jpeg")
PACKAGED = ("mnist",)
# Of arrays of images in .npz files, and of their labels.
NAMES = ("arr_0", "images", "pixels")
LABELS = ("labels", "arr_1")
# What tells the classes of files in EDM's data sets.
CLASSES = "dataset.json"
# Pillow's modes without colours.
GRAY = ("1", "L", "LA", "La")
DAMAGE = (OSError, ValueError, EOFError, BadZipFile, zlib.error)
READERS = 8


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`count` images of one size; `read(positions)` gives some as uint8 [n, C, H, W].

    `identity` changes when the images do; `lossy` says that they were compressed as JPEG, which by
    itself moves distances. `labels` int64 [count] are the classes, from 0, and `classes` their
    names, of sets that have any.
    """

    name: str
    count: int
    read: Callable[[Sequence[int]], Tensor]
    identity: str
    lossy: bool = False
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time."""
        for first in range(0, self.count, size):
            yield self.read(range(first, min(first + size, self.count)))


def open_images(source: str, size: int | None = None) -> ImageSet:
    """The images of `source`: "mnist", a folder or zip of image files, an .npz or .npy file.

    Files of a folder are taken with those of its folders, in order of their names. An .npz holds
    uint8 [N, H, W, C] as `arr_0`, `images` or `pixels` (that of ADM's samples), or [N, C, H, W].
    "hf:NAME" or "hf:NAME:SPLIT" is a data set of the hub (needs the package datasets). `size` cuts
    out the central square and resizes it, as Pillow's bicubic; without it all must have one size.
    Labels are those of an .npz, as `labels` or `arr_1`, those in a dataset.json beside image files
    (EDM's data sets), or the folders that these lie in, numbered in the order of their names
    (numbers by their value).
    Raises ValueError for anything else, FileNotFoundError if there is nothing.
    """
    if size is not None and size < 1:
        raise ValueError(f"images are resized to 1 x 1 pixels at least, not {size}")
    path = Path(source)
    if source in PACKAGED:
        digits = zoo.mnist()
        return in_memory(source, quantise(digits.images), size, digits.labels)
    if source.startswith("hf:"):
        return from_hub(source, size)
    if not path.exists():
        raise FileNotFoundError(f"no images at {source}: no such file or folder, nor {PACKAGED[0]}")
    if path.is_dir():
        return from_folder(path, size)
    if path.suffix == ".zip":
        return from_zip(path, size)
    if path.suffix in (".npz", ".npy"):
        return in_memory(source, from_array(path), size, labels_beside(path))
    raise ValueError(f"{source}: give a folder, a .zip, an .npz or .npy file, or {PACKAGED[0]}")


def in_memory(
    name: str, pixels: Tensor, size: int | None = None, labels: Tensor | None = None
) -> ImageSet:
    """A set that is a tensor already, uint8 [N, C, H, W], with labels int64 [N] if it has any."""
    if size is not None:
        pictures = (
            Image.fromarray(layers.permute(1, 2, 0).squeeze(2).numpy()) for layers in pixels
        )
        pixels = torch.from_numpy(np.stack([values(square(each, size)) for each in pictures]))
    names = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    identity = digest(pixels.numpy())
    return ImageSet(
        name, len(pixels), lambda rows: pixels[list(rows)], identity, labels=labels, classes=names
    )


def from_array(path: Path) -> Tensor:
    """The images in an .npy or .npz file; ValueError if they are not uint8 images."""
    try:
        found = np.load(path, allow_pickle=False)
        array = found if isinstance(found, np.ndarray) else first_of(found)
    except DAMAGE as error:
        raise ValueError(f"{path} holds no images, or is damaged: {error}") from error
    if array.dtype != np.uint8:
        raise ValueError(f"{path} holds {array.dtype}: images must be uint8, 0 to 255")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not {1, 3} & {array.shape[1], array.shape[3]}:
        raise ValueError(f"{path} has shape {list(array.shape)}: images are [N, H, W, C]")
    if not array.size:
        raise FileNotFoundError(f"{path} holds no images, but an array {list(array.shape)}")
    last = array.shape[3] in (1, 3)
    # A copy: the strides of a view decide how a network is computed, and so the last digits.
    return torch.from_numpy((array.transpose(0, 3, 1, 2) if last else array).copy())


def labels_beside(path: Path) -> Tensor | None:
    """The labels in an .npz of images, if any; ValueError if they are no numbers of classes."""
    if path.suffix != ".npz":
        return None
    with np.load(path, allow_pickle=False) as file:
        name = next((each for each in LABELS if each in file), None)
        images = next(each for each in NAMES if each in file)
        if name is None:
            return None
        labels, count = file[name], len(file[images])
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"{path}: {name} {list(labels.shape)} {labels.dtype} are no labels of {count} images: "
            "one whole number from 0 each"
        )
    return torch.from_numpy(labels.astype(np.int64))


def first_of(file: Any) -> Any:
    """The images in an open .npz, by the names in use."""
    with file:
        name = next((each for each in NAMES if each in file), None)
        if name is None:
            raise ValueError(f"it has {', '.join(file)}, but none of {', '.join(NAMES)}")
        return file[name]


def from_folder(path: Path, size: int | None) -> ImageSet:
    """The image files of a folder and of those in it."""
    names = sorted(str(each) for each in path.rglob("*") if is_image(each))
    stats = [Path(name).stat() for name in names]
    marks = [[each.st_size, each.st_mtime_ns] for each in stats]
    found = from_files(str(path), names, lambda name: Path(name).read_bytes(), size, marks)
    told = path / CLASSES
    if not told.is_file():
        return found
    inside = [Path(name).relative_to(path).as_posix() for name in names]
    return labelled(found, inside, told.read_bytes(), str(told))


def from_zip(path: Path, size: int | None) -> ImageSet:
    """The image files of a zip archive."""
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        raise ValueError(f"{path} is no zip archive, or damaged: {error}") from error
    names = sorted(name for name in archive.namelist() if is_image(Path(name)))
    sums = [archive.getinfo(name).CRC for name in names]
    found = from_files(str(path), names, archive.read, size, sums)
    if CLASSES not in archive.namelist():
        return found
    return labelled(found, names, archive.read(CLASSES), f"{path}: {CLASSES}")


def labelled(found: ImageSet, names: Sequence[str], text: bytes, where: str) -> ImageSet:
    """The set with the classes that a dataset.json tells of its files, or without any.

    Folders of EDM's data sets are parts of the set, not classes, and labels that are vectors are
    none. Raises ValueError for a file that is not told of.
    """
    try:
        pairs = json.loads(text).get("labels")
        told = None if pairs is None else {str(file): label for file, label in pairs}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} tells no labels: {error}") from error
    bare = replace(found, labels=None, classes=())
    if told is None:
        return bare
    if missing := [name for name in names if name not in told]:
        raise ValueError(f"{where} has no label of {missing[0]}, nor of {len(missing) - 1} others")
    labels = [told[name] for name in names]
    if not all(type(each) is int and each >= 0 for each in labels):
        return bare
    classes = tuple(map(str, range(max(labels) + 1)))
    return replace(found, labels=torch.tensor(labels), classes=classes)


def from_hub(source: str, size: int | None) -> ImageSet:
    """A data set of the hub: its first column of images."""
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(
            f"{source} needs the package datasets (pip install datasets), or give a folder"
        ) from error
    name, _, split = source.removeprefix("hf:").partition(":")
    table = datasets.load_dataset(name, split=split or "train")
    column = next((k for k, v in table.features.items() if isinstance(v, datasets.Image)), None)
    if column is None:
        raise ValueError(f"{source} has no column of images, only {', '.join(table.features)}")

    def load(row: str) -> bytes:
        buffer = io.BytesIO()
        table[int(row)][column].save(buffer, format="PNG")
        return buffer.getvalue()

    rows = [str(i) for i in range(len(table))]
    return from_files(source, rows, load, size, getattr(table, "_fingerprint", ""))


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name."""
    return path.suffix.lower() in SUFFIXES


def from_files(
    name: str, names: Sequence[str], load: Callable[[str], bytes], size: int | None, marks: Any
) -> ImageSet:
    """A set of image files, decoded when they are read; gray if all are, else RGB.

    `marks` are what changes with the files, as JSON values.
    """
    if not names:
        raise FileNotFoundError(f"{name} holds no images ({', '.join(SUFFIXES)})")
    # Ends at the first one with colours.
    mode = "L" if all(is_gray(load, each) for each in names) else "RGB"

    def decode(each: str) -> Pixels:
        return decoded(load, each, mode, size)

    first = decode(names[0])

    def read(rows: Sequence[int]) -> Tensor:
        wanted = [names[i] for i in rows]
        with ThreadPoolExecutor(READERS) as pool:
            images = list(pool.map(decode, wanted))
        for each, image in zip(wanted, images, strict=True):
            if image.shape != first.shape:
                raise ValueError(
                    f"{each} is {described(image)}, {names[0]} is {described(first)}: images must "
                    "have one size; --size N cuts them square and resizes them"
                )
        return torch.from_numpy(np.stack(images))

    lossy = any(Path(each).suffix.lower() in LOSSY for each in names)
    identity = digest(name, list(names), marks, size)
    labels, classes = by_folder(names)
    return ImageSet(name, len(names), read, identity, lossy, labels, classes)


def by_folder(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels by the folders that files lie in, and their names; none if all lie in one."""
    folders = [Path(each).parent.name for each in names]
    # As torchvision's ImageFolder, but 10 comes after 9.
    classes = sorted(
        {*folders}, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n)
    )
    if len(classes) < 2:
        return None, ()
    number = {folder: label for label, folder in enumerate(classes)}
    return torch.tensor([number[folder] for folder in folders]), tuple(classes)


def described(image: Pixels) -> str:
    """The size of an image [C, H, W] as people say it."""
    return "{2} x {1}".format(*image.shape)


@contextmanager
def opened(load: Callable[[str], bytes], name: str) -> Iterator[Image.Image]:
    """An image file of 8 bits per channel; ValueError with its name for whatever goes wrong."""
    try:
        with Image.open(io.BytesIO(load(name))) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {picture.mode} instead of 8 bits per channel")
            yield picture
    # Damage surfaces as almost anything: OSError, SyntaxError, struct.error, BadZipFile, ..
    except Exception as error:
        raise ValueError(f"{name} is no image that can be read: {error}") from error


def is_gray(load: Callable[[str], bytes], name: str) -> bool:
    """Whether an image file has no colours, by its header."""
    with opened(load, name) as picture:
        return picture.mode in GRAY


def decoded(load: Callable[[str], bytes], name: str, mode: str, size: int | None) -> Pixels:
    """An image file as uint8 [C, H, W] in Pillow's mode L or RGB; transparency is left out."""
    with opened(load, name) as picture:
        plain = picture.convert(mode)
        return values(plain if size is None else square(plain, size))


def square(picture: Image.Image, size: int) -> Image.Image:
    """The central square, resized."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    # Cut first: given a box, Pillow's filter also looks at what is around it.
    middle = picture.crop((left, top, left + side, top + side))
    return middle.resize((size, size), Image.Resampling.BICUBIC)


def values(picture: Image.Image) -> Pixels:
    """A picture as uint8 [C, H, W]."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
