from __future__ import annotations

import io
import pickle
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fewstep.eval.extractors import extractor
from fewstep.eval.formats import load_statistics, save_statistics
from fewstep.eval.metrics import Moments, frechet_distance, moments
from fewstep.eval.sources import in_memory
from fewstep.eval.statistics import Statistics, check_comparable, collect_statistics

from .exact import bands, random_pixels

FEATURES = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
FID = {"extractor": "inception", "resize": "tf1 to 299"}


def statistics(**changes):
    known = Statistics(FID, moments(FEATURES), moments(FEATURES[:, :3]), FEATURES[:7], {"a": 1})
    return replace(known, **changes)


def foreign(path, **arrays):
    """A file of mu and sigma, as other programs write them."""
    known = moments(FEATURES)
    np.savez(path, **{"mu": known.mean.numpy(), "sigma": known.cov.numpy(), **arrays})
    return path


def same(a, b):
    return torch.equal(a.mean, b.mean) and torch.equal(a.cov, b.cov)


def test_our_file_comes_back_bit_for_bit(tmp_path):
    pixels = torch.from_numpy(random_pixels(30).transpose(0, 3, 1, 2).copy())
    made = collect_statistics(in_memory("noise", pixels), bands(weights="w"), members=11)
    save_statistics(made, tmp_path / "a.npz")
    found = load_statistics(str(tmp_path / "a.npz"))
    assert dict(found.facts) == dict(made.facts)
    assert dict(found.origin) == dict(made.origin)
    assert same(found.features, made.features)
    assert same(found.spatial, made.spatial)
    assert torch.equal(found.members, made.members)
    assert torch.equal(found.features.factor, made.features.factor)
    assert (found.features.n, found.spatial.n) == (30, 30)
    save_statistics(found, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    check_comparable(found, bands(weights="w"))


def test_what_is_not_known_is_not_written(tmp_path):
    bare = Statistics(FID, Moments(None, *(getattr(moments(FEATURES), x) for x in ("mean", "cov"))))
    save_statistics(bare, tmp_path / "a.npz")
    found = load_statistics(tmp_path / "a.npz")
    assert (found.features.n, found.spatial, found.members) == (None, None, None)


def test_the_factor_in_the_file_is_used(tmp_path, monkeypatch):
    save_statistics(statistics(), tmp_path / "a.npz")
    found = load_statistics(tmp_path / "a.npz").features
    other = moments(FEATURES + 1)
    other.factor  # noqa: B018

    def forbidden(*each):
        raise AssertionError("the factor was computed again")

    monkeypatch.setattr(sys.modules[Moments.__module__], "factor", forbidden)
    assert frechet_distance(found, other) == pytest.approx(5, abs=1e-6)


def test_the_factor_of_another_covariance_is_refused(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    arrays = dict(np.load(tmp_path / "a.npz"))
    for wrong in (
        {"factor": arrays["factor"] * 1.01},
        {"factor": arrays["factor"].T},
        {"sigma": arrays["sigma"] + 0.01 * np.eye(5)},
        {"factor": arrays["factor"] * np.nan},
    ):
        np.savez(tmp_path / "b.npz", **{**arrays, **wrong})
        with pytest.raises(ValueError, match="factor belongs to another sigma"):
            load_statistics(tmp_path / "b.npz")
    for wrong in (arrays["factor"][:4], arrays["factor"].astype(np.float32)):
        np.savez(tmp_path / "b.npz", **{**arrays, "factor": wrong})
        with pytest.raises(ValueError, match="is none of sigma"):
            load_statistics(tmp_path / "b.npz")


def test_a_singular_covariance_comes_back(tmp_path):
    few = Statistics(FID, moments(FEATURES[:3]))
    save_statistics(few, tmp_path / "a.npz")
    found = load_statistics(tmp_path / "a.npz").features
    assert found.factor.shape == (5, 2)
    with pytest.warns(UserWarning, match="3 samples in 5"):
        assert frechet_distance(found, few.features) == pytest.approx(0, abs=1e-12)


def test_our_file_is_read_by_other_programs(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    # As EDM, pytorch-fid, clean-fid and ADM do.
    with np.load(tmp_path / "a.npz") as file:
        assert file["mu"].shape == (5,)
        assert file["sigma"].shape == (5, 5)
        assert file["mu_s"].shape == (3,)
        assert file["sigma_s"].dtype == np.float64
    save_statistics(statistics(), tmp_path / "a.pkl")
    # As EDM2 does.
    entry = pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert entry["num_images"] == 40
    assert np.array_equal(entry["fid"]["mu"], moments(FEATURES).mean.numpy())


def test_files_of_edm_are_read(tmp_path):
    path = foreign(tmp_path / "cifar10-32x32.npz")
    with pytest.warns(UserWarning, match="taken for tf1"):
        found = load_statistics(path)
    assert same(found.features, moments(FEATURES))
    assert found.facts == FID
    assert found.features.n is None


def test_files_of_adm_are_read_with_their_spatial_moments(tmp_path):
    known = moments(FEATURES[:, :3])
    path = foreign(
        tmp_path / "VIRTUAL_imagenet64_labeled.npz",
        mu_s=known.mean.numpy(),
        sigma_s=known.cov.numpy(),
        arr_0=random_pixels(4, 3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_statistics(path)
    assert same(found.spatial, known)
    assert found.facts == FID


@pytest.mark.parametrize(
    ("name", "resize"),
    [
        ("cifar10_legacy_tensorflow_train_32.npz", "tf1"),
        ("cifar10_legacy_pytorch_train_32.npz", "torch"),
        ("cifar10_clean_train_32.npz", "clean"),
    ],
)
def test_names_of_clean_fid_say_the_resize(name, resize, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_statistics(foreign(tmp_path / name))
    assert found.facts["resize"] == f"{resize} to 299"


def test_a_convention_is_taken_where_the_file_says_none(tmp_path):
    path = foreign(tmp_path / "cleaned.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_statistics(path, convention="torch").facts["resize"] == "torch to 299"
    with pytest.warns(UserWarning, match="taken for tf1"):
        load_statistics(path)
    with pytest.raises(ValueError, match=r"one of tf1, .*, not 'bicubic'"):
        load_statistics(path, convention="bicubic")


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_a_convention_beside_a_file_that_says_its_own_is_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_statistics(statistics(), path)
    with pytest.raises(ValueError, match="says itself"):
        load_statistics(path, convention="clean")


@pytest.mark.parametrize("name", ["pool_3", "feats"])
def test_activations_give_moments_and_members(name, tmp_path):
    path = tmp_path / "stats_clean_x.npz"
    np.savez(path, **{name: FEATURES.numpy()})
    found = load_statistics(path)
    np.testing.assert_allclose(found.features.cov, np.cov(FEATURES.double().numpy().T), rtol=1e-12)
    assert torch.equal(found.members, FEATURES)
    assert found.features.n == 40
    np.savez(path, **{name: FEATURES.numpy() * np.nan})
    with pytest.raises(ValueError, match=r"stats_clean_x\.npz: .*not finite"):
        load_statistics(path)


def edm2(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def test_files_of_edm2_are_read_by_extractor(tmp_path):
    a, b = moments(FEATURES), moments(FEATURES[:, :3])
    path = edm2(
        tmp_path / "img64.pkl",
        {
            "num_images": 40,
            "fid": {"mu": a.mean.numpy(), "sigma": a.cov.numpy()},
            "fd_dinov2": {"mu": b.mean.numpy(), "sigma": b.cov.numpy()},
        },
    )
    found = load_statistics(path, "inception")
    assert same(found.features, a)
    assert found.facts == FID
    assert found.features.n == 40
    other = load_statistics(path, "dinov2")
    assert same(other.features, b)
    assert other.facts == {"extractor": "dinov2"}
    with pytest.raises(ValueError, match="nothing called 'pixels' for pixels"):
        load_statistics(path, "pixels")


def test_edm2_round_trip(tmp_path):
    save_statistics(statistics(), tmp_path / "a.pkl")
    found = load_statistics(tmp_path / "a.pkl")
    assert same(found.features, moments(FEATURES))
    assert found.features.n == 40


@pytest.mark.parametrize(
    ("facts", "name", "message"),
    [
        ({**FID, "resize": "clean to 299"}, "a.pkl", "resized by tf1 to 299, these by clean"),
        ({"extractor": "pixels"}, "a.pkl", "inception, dinov2, not pixels"),
        (FID, "a.txt", r"\.npz or \.pkl"),
    ],
)
def test_what_a_file_cannot_say_is_not_written(facts, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_statistics(statistics(facts=facts), tmp_path / name)
    assert not list(tmp_path.iterdir())


class Malice:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, capsys):
    path = edm2(tmp_path / "a.pkl", {"fid": {"mu": Malice()}})
    with pytest.raises(ValueError, match=r"asks for builtins\.print"):
        load_statistics(path)
    np.savez(tmp_path / "b.npz", mu=np.array([Malice()]), sigma=np.eye(1))
    with pytest.raises(ValueError, match="no file of statistics"):
        load_statistics(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="no file of statistics"):
        load_statistics(tmp_path / "c.npz")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.full(5, np.nan)}, "not finite"),
        ({"sigma": np.full((5, 5), np.inf)}, "not finite"),
        ({"sigma": np.arange(25.0).reshape(5, 5)}, "not symmetric"),
        ({"mu": np.zeros(4)}, r"mu \[4\] and sigma \[5, 5\]"),
        ({"mu": np.zeros((1, 5))}, r"mu \[1, 5\]"),
        ({"sigma": np.zeros((5, 4))}, r"sigma \[5, 4\]"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \[0\]"),
        ({"mu": np.array(list("abcde"))}, "must be arrays of numbers"),
        ({"mu_s": np.zeros(3)}, "lacks sigma_s"),
        ({"meta": np.asarray("{}")}, "meta that is not ours"),
        ({"meta": np.asarray("nonsense")}, "meta that is not ours"),
    ],
)
def test_what_is_no_covariance_is_refused(changes, message, tmp_path):
    path = foreign(tmp_path / "x_clean_y.npz", **changes)
    with pytest.raises(ValueError, match=message):
        load_statistics(path)


def test_wrong_keys_are_named(tmp_path):
    np.savez(tmp_path / "x_clean_y.npz", mean=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ValueError, match="holds mean, sigma, and lacks mu"):
        load_statistics(tmp_path / "x_clean_y.npz")
    for value in ([1, 2], {"num_images": 3}, {"fid": {"mu": {}, "sigma": None}}):
        with pytest.raises(ValueError, match=r"nothing called 'fid'|arrays of numbers"):
            load_statistics(edm2(tmp_path / "a.pkl", value))


def test_a_missing_file_is_not_found(tmp_path):
    for name in ("a.npz", "a.pkl"):
        with pytest.raises(FileNotFoundError, match="no reference statistics"):
            load_statistics(tmp_path / name)


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_damage_is_a_message_and_never_other_numbers(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_statistics(statistics(), path)
    whole, truth = path.read_bytes(), load_statistics(path)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.(npz|pkl)"):
            load_statistics(path)
    generator = np.random.default_rng(0)
    for _ in range(60 if suffix == ".npz" else 0):
        spoilt = bytearray(whole)
        spoilt[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(spoilt)
        try:
            found = load_statistics(path)
        except ValueError:
            continue
        # What is beside the content, such as a date.
        assert same(found.features, truth.features)


def test_an_npy_in_disguise_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="no file of statistics"):
        load_statistics(tmp_path / "a.npz")


def test_statistics_of_one_extractor_are_refused_by_another(tmp_path):
    save_statistics(statistics(), tmp_path / "a.npz")
    found = load_statistics(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="extractor: 'inception' there, 'pixels' here"):
        check_comparable(found, extractor("pixels"))
    inception = replace(bands(resize="clean to 299"), name="inception")
    with pytest.raises(ValueError, match="resize: 'tf1 to 299' there, 'clean to 299' here"):
        check_comparable(found, inception)
