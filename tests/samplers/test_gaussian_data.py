"""Laws in files: read back bit by bit, and as others published them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep import samplers
from fewstep.samplers import exact
from fewstep.samplers.exact import Mixture
from fewstep.samplers.gaussian_data import PARTS, GaussianData, load_pca
from fewstep.samplers.teleport import beginning, gaussian_flow
from fewstep.schedules import EDM
from safetensors.torch import load_file, save_file

RNG = np.random.default_rng(4)
SHAPE, DIM = (3, 2, 2), 12
PIXELS = RNG.uniform(size=(40, DIM)) * np.linspace(0.1, 1, DIM)


def two(by="class"):
    vectors = np.stack([np.linalg.qr(RNG.normal(size=(DIM, 4)))[0] for _ in range(2)])
    law = exact.low_rank_mixture(
        RNG.normal(size=(2, DIM)), [1, 3], vectors, RNG.uniform(size=(2, 4)), [0.1, 0.2]
    )
    return GaussianData(law, SHAPE, by, {"images": "two", "count": 40})


def test_a_file_is_read_back_bit_by_bit(tmp_path):
    mine = two()
    mine.save(tmp_path / "two.safetensors")
    theirs = GaussianData.load(tmp_path / "two.safetensors")
    for name in PARTS:
        assert torch.equal(getattr(mine.law, name), getattr(theirs.law, name))
        assert getattr(theirs.law, name).dtype == torch.float64
    assert (theirs.shape, theirs.by, theirs.origin) == (SHAPE, "class", mine.origin)
    assert theirs.key == mine.key
    assert two("cluster").key != mine.key
    assert [each.name for each in tmp_path.iterdir()] == ["two.safetensors"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no normal laws at"):
        GaussianData.load(path)
    with pytest.raises(ValueError, match=r"written as \.safetensors, not 'a\.npz'"):
        two().save(tmp_path / "a.npz")
    path.write_bytes(b"what is this")
    with pytest.raises(ValueError, match="or damaged"):
        GaussianData.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds weight, not the normal laws"):
        GaussianData.load(path)
    two().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(ValueError, match="schema 9; this fewstep reads 1"):
        GaussianData.load(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="or damaged"):
        GaussianData.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"means": torch.zeros(2, 5).double()}, r"means \[2, 5\]"),
        ({"tail": torch.zeros(2)}, r"tail \[2\] torch.float32"),
        ({"values": torch.full((2, 4), -1.0).double()}, "a variance is below zero"),
        ({"means": torch.full((2, DIM), torch.nan).double()}, "means is not finite"),
    ],
)
def test_what_is_no_law_is_refused(change, said):
    parts = {name: getattr(two().law, name) for name in PARTS}
    with pytest.raises(ValueError, match=said):
        GaussianData(Mixture(**{**parts, **change}), SHAPE, "class")


def test_a_law_is_of_samples_of_its_shape():
    with pytest.raises(ValueError, match="12 dimensions are not those by class"):
        GaussianData(two().law, (1, 3, 3), "class")
    with pytest.raises(ValueError, match=r"2 laws .* by all"):
        GaussianData(two().law, SHAPE)


def test_the_share_of_variance_that_is_explained():
    mine = two()
    for j in range(2):
        inside, rest = mine.law.values[j].sum().item(), 8 * mine.law.tail[j].item()
        assert mine.explained[j] == pytest.approx(inside / (inside + rest))


def test_labels_choose_the_law_of_a_class():
    mine, source = two(), beginning(EDM()).nodes[0]
    target = beginning(EDM(sigma_max=3.0)).nodes[0]
    x = 80 * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 1, 1])
    found = mine.start(source, labels)(x, target)
    assert torch.equal(found, gaussian_flow(mine.law, x, source, target, labels))
    assert not torch.equal(found, gaussian_flow(mine.law, x, source, target))
    for wrong in (None, torch.tensor([0, 1, 2, 0])):
        with pytest.raises(ValueError, match="laws of 2 classes need a label below 2"):
            mine.start(source, wrong)
    # To clusters they say nothing.
    clusters = two("cluster")
    along = clusters.start(source)(x, target)
    assert torch.equal(clusters.start(source, labels)(x, target), along)
    assert not torch.equal(along, gaussian_flow(clusters.law, x, source, target, labels))


def published(tmp_path, **change):
    """A file as Wang and Vastola publish them: of pixels in [0, 1], eigenvectors in columns."""
    values, vectors = np.linalg.eigh(np.cov(PIXELS.T))
    parts = {"eigval": values, "eigvec": vectors, "imgmean": PIXELS.mean(0).reshape(SHAPE)}
    path = tmp_path / "pixels_PCA.pt"
    torch.save({k: torch.as_tensor(v) for k, v in {**parts, **change}.items()}, path)
    return path


def test_a_published_file_is_turned_into_units_of_networks(tmp_path):
    found = load_pca(published(tmp_path))
    x = 2 * PIXELS - 1
    np.testing.assert_allclose(found.law.means[0], x.mean(0), atol=1e-12)
    vectors, values = found.law.vectors[0].numpy(), found.law.values[0].numpy()
    np.testing.assert_allclose((vectors * values) @ vectors.T, np.cov(x.T), atol=1e-12)
    assert (found.shape, found.by, found.law.tail.item()) == (SHAPE, "all", 0.0)
    low = load_pca(published(tmp_path), rank=5)
    assert torch.equal(low.law.values, found.law.values[:, :5])
    assert torch.equal(low.law.vectors, found.law.vectors[:, :, :5])
    assert low.law.tail.item() == pytest.approx(found.law.values[0, 5:].mean().item())
    # A mean that was flattened is of a square image.
    flat = published(tmp_path, imgmean=PIXELS.mean(0))
    assert load_pca(flat).shape == SHAPE


def test_other_published_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no PCA at"):
        load_pca(tmp_path / "none.pt")
    path = published(tmp_path, imgmean=255 * PIXELS.mean(0))
    with pytest.raises(ValueError, match=r"imgmean runs from .* pixels in \[0, 1\]"):
        load_pca(path)
    path = published(tmp_path, eigval=np.zeros(5))
    with pytest.raises(
        ValueError, match=r"eigval \[5\], eigvec \[12, 12\] and imgmean \[3, 2, 2\]"
    ):
        load_pca(path)
    torch.save({"mean": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds mean, not the tensors eigval, eigvec, imgmean"):
        load_pca(path)
    torch.save(torch.zeros(2), path)
    with pytest.raises(ValueError, match="holds Tensor, not"):
        load_pca(path)
    torch.save({"eigval": two()}, path)
    with pytest.raises(ValueError, match="no file of tensors"):
        load_pca(path)
    path.write_bytes(b"no torch")
    with pytest.raises(ValueError, match="no file of tensors"):
        load_pca(path)
    odd = np.eye(7)
    path = published(tmp_path, eigval=odd[0], eigvec=odd, imgmean=odd[0])
    with pytest.raises(ValueError, match="7 numbers is no square image"):
        load_pca(path)


def test_arrays_in_the_file_have_plain_names(tmp_path):
    """For readers in other programs."""
    two().save(tmp_path / "two.safetensors")
    assert {*load_file(tmp_path / "two.safetensors")} == {*PARTS}
    assert samplers.GaussianData is GaussianData
