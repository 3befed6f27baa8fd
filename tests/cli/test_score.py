from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from fewstep import zoo
from fewstep.cli import app
from fewstep.eval.formats import load_statistics
from fewstep.eval.images import quantise, save_image
from fewstep.samplers import GaussianData
from typer.testing import CliRunner

# Sixty digits of both sides, small enough for the warning that 64 features are more.
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
DIGITS = ("--extractor", "mnist-classifier", "--device", "cpu")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refused(*arguments, code=2):
    found = run(*arguments, code=code)
    assert found.stdout == ""
    assert found.stderr.startswith(f"fewstep {arguments[0]}: ")
    # Whatever the width of the terminal.
    return " ".join(found.stderr.split())


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two .npz files of digits, the first also as a folder of PNG files."""
    folder = tmp_path_factory.mktemp("sides")
    pixels = quantise(zoo.mnist().images[::80][:120])
    for name, part in (("a", pixels[::2]), ("b", pixels[1::2])):
        np.savez(folder / f"{name}.npz", arr_0=part.permute(0, 2, 3, 1).numpy())
    for i, image in enumerate(pixels[::2]):
        save_image(image, folder / "a" / f"{i:03}.png")
    return folder


def values(text):
    return json.loads(text)["values"]


def test_json_is_all_that_is_on_stdout_and_the_same_in_the_file(sides, tmp_path):
    found = run(
        "score", sides / "a.npz", "--ref", sides / "b.npz", *DIGITS, "--json",
        "--metrics", "frechet,kernel,score,neighbours", "--out", tmp_path / "a.json",
    )  # fmt: skip
    record = json.loads(found.stdout)
    assert record == json.loads((tmp_path / "a.json").read_text())
    assert (record["n"], record["n_reference"]) == (60, 60)
    assert record["extractor"] == "mnist-classifier-64"
    assert record["lossy"] is False
    assert set(record["values"]) == {
        "frechet", "kernel", "score", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    frechet = record["values"]["frechet"]
    assert frechet["title"] == "Frechet distance (mnist-classifier-64 features)"
    assert frechet["value"] > frechet["corrected"]
    assert 0 < frechet["error"] < frechet["value"]
    assert "FID" not in found.stdout


def test_numbers_are_readable_in_80_columns(sides, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("score", sides / "a.npz", "--ref", sides / "b.npz", *DIGITS)
    names = ("--metrics", "frechet,kernel,neighbours")
    rows = run(*arguments, *names).stdout.strip().splitlines()
    truth = values(run(*arguments, *names, "--json").stdout)
    assert rows[0].startswith("60 images against 60, mnist-classifier-64")
    assert len(rows) == 1 + len(truth)
    for row, each in zip(rows[1:], truth.values(), strict=True):
        value, _, error = row.split()[:3]
        assert float(value) == pytest.approx(each["value"], abs=each["error"] / 10)
        assert float(error) == pytest.approx(each["error"], rel=0.1)
        assert each["title"] in row
    # A share would leave 0..1, and the kernel distance has no bias.
    assert ["without bias" in row for row in rows[1:]] == [True, *[False] * 5]


def test_statistics_made_once_give_the_same_numbers(sides, tmp_path):
    told = run("stats", sides / "b.npz", *DIGITS, "--out", tmp_path / "b.npz", "--members", 30)
    assert told.stdout.startswith("60 images (extractor mnist-classifier-64")
    assert "30 features" in told.stdout
    direct, stored = (
        values(run("score", sides / "a", "--ref", each, *DIGITS, "--json").stdout)
        for each in (sides / "b.npz", tmp_path / "b.npz")
    )
    assert stored["frechet"]["value"] == pytest.approx(direct["frechet"]["value"], rel=1e-9)


def test_an_array_and_a_folder_of_the_same_images_score_the_same(sides):
    a, b = (
        values(run("score", each, "--ref", sides / "b.npz", *DIGITS, "--json").stdout)
        for each in (sides / "a", sides / "a.npz")
    )
    assert a == b


def test_scores_in_order(sides, tmp_path):
    pixels = np.load(sides / "a.npz")["arr_0"]
    np.savez(tmp_path / "sorted.npz", arr_0=pixels.repeat(10, 0))
    found = [
        values(
            run(
                "score", tmp_path / "sorted.npz", "--ref", sides / "b.npz", *DIGITS, "--json",
                "--metrics", "score", *more,
            ).stdout
        )["score"]["value"]
        for more in ((), ("--in-order",))
    ]  # fmt: skip
    assert found[1] < found[0] - 1


def test_foreign_statistics_are_rewritten_without_any_network(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 4))
    arrays = {"mu": x.mean(0), "sigma": np.cov(x.T)}
    np.savez(tmp_path / "edm.npz", **arrays)
    out = tmp_path / "ours.npz"
    told = run("stats", tmp_path / "edm.npz", "--convention", "clean", "--out", out)
    assert "an unknown number of images (extractor inception, resize clean to 299)" in told.stdout
    assert load_statistics(out).facts["resize"] == "clean to 299"
    assert np.array_equal(load_statistics(out).features.cov, arrays["sigma"])
    refused("stats", out, "--out", tmp_path / "a.pkl")
    (tmp_path / "img.pkl").write_bytes(pickle.dumps({"num_images": 50, "fid": arrays}))
    run("stats", tmp_path / "img.pkl", "--out", tmp_path / "from_edm2.npz")
    assert load_statistics(tmp_path / "from_edm2.npz").features.n == 50


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metrics", "fid"], "unknown metric 'fid'; choose from frechet"),
        (["--metrics", ","], "--metrics names none"),
        (["--metrics", "spatial"], "spatial needs spatial"),
        (["--metrics", "cmmd"], "unit length"),
        (["--convention", "clean"], "are images: the extractor resizes them"),
        (["--extractor", "nope"], "there is no extractor 'nope'"),
        (["--option", "nope"], "--option wants key=value, not 'nope'"),
        (["--option", "a=["], "no value that YAML knows"),
        (["--option", "colour=1"], "has no option 'colour'; there is path"),
        (["--device", "nope"], "device 'nope'"),
        (["--size", "8"], "28 x 28"),
    ],
)
def test_a_mistake_is_found_before_the_reference_is_read(more, message, sides, monkeypatch):
    def forbidden(*each, **options):
        raise AssertionError("the reference was read")

    monkeypatch.setattr("fewstep.eval.evaluate.collect_statistics", forbidden)
    assert message in refused("score", sides / "a.npz", "--ref", sides / "b.npz", *DIGITS, *more)


def test_statistics_of_another_extractor_are_refused(sides, tmp_path):
    run("stats", sides / "b.npz", *DIGITS, "--out", tmp_path / "b.npz")
    text = refused(
        "score", sides / "a.npz", "--ref", tmp_path / "b.npz", "--extractor", "pixels",
        "--option", "channels=1",
    )  # fmt: skip
    assert "extractor: 'mnist-classifier-64' there, 'pixels' here" in text


def test_where_statistics_cannot_go_is_said_before_they_are_made(sides, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.cli.score.reference_statistics", None)
    assert "written as .npz" in refused("stats", sides / "b.npz", *DIGITS, "--out", tmp_path / "x")
    assert "not mnist-classifier-64" in refused(
        "stats", sides / "b.npz", *DIGITS, "--out", tmp_path / "x.pkl"
    )


def test_what_is_missing_is_code_3(sides, tmp_path, monkeypatch):
    for name in ("FEWSTEP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("FEWSTEP_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    a = sides / "a.npz"
    assert "no copy found" in refused("score", a, "--ref", sides / "b.npz", code=3)
    assert "no images at" in refused("score", "nope", "--ref", a, *DIGITS, code=3)
    assert "no images at" in refused("score", a, "--ref", "nope.npz", *DIGITS, code=3)
    assert "no reference" in refused("score", a, "--ref", "nope.pkl", *DIGITS, code=3)
    assert "no images at" in refused("stats", "nope", "--out", tmp_path / "a.npz", *DIGITS, code=3)


def test_numbers_that_are_not_finite_are_code_5(sides, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.zoo.Classifier.features", lambda self, x: x.flatten(1)[:, :64] / 0)
    a = sides / "a.npz"
    for command in (("score", a, "--ref", a), ("stats", a, "--out", tmp_path / "a.npz")):
        text = refused(*command, *DIGITS, code=5)
        assert "features that are not finite" in text
    assert not (tmp_path / "a.npz").exists()


def test_jpeg_files_are_warned_of_beside_the_numbers(sides, tmp_path):
    from PIL import Image

    for i in range(3):
        Image.open(sides / "a" / f"{i:03}.png").save(tmp_path / f"{i}.jpg")
    arguments = ("score", tmp_path, "--ref", sides / "b.npz", *DIGITS)
    told = run(*arguments)
    assert "JPEG" in told.stderr
    assert "JPEG" not in told.stdout
    told = run(*arguments, "--json")
    assert json.loads(told.stdout)["lossy"] is True
    assert "JPEG" not in told.stderr


def test_the_doctor_is_always_well():
    text = run("doctor", "--device", "cpu").stdout
    for heading in ("This machine", "Optional packages", "Weights of extractors", "Network"):
        assert heading in text
    assert "mnist-classifier  bundled" in text
    assert "device 'nope'" in refused("doctor", "--device", "nope")


def test_options_about_images_are_refused_for_statistics(sides, tmp_path):
    run("stats", sides / "b.npz", *DIGITS, "--out", tmp_path / "b.npz")
    for option, value in (("--members", 8), ("--size", 8), ("--option", "channels=1")):
        said = refused("stats", tmp_path / "b.npz", option, value, "--out", tmp_path / "c.npz")
        assert f"{option} is about images" in said
    assert not (tmp_path / "c.npz").exists()


def test_normal_laws_of_images(sides, tmp_path):
    """Of a folder, of an array with labels, in clusters; and what is explained is said."""
    found = run("stats", sides / "a", "--gaussian", "--out", tmp_path / "a.safetensors")
    assert found.stdout.startswith("1 normal law of ")
    assert "784 of 784 directions with 100.00% of the variance: " in found.stdout
    whole = GaussianData.load(tmp_path / "a.safetensors")
    x = np.load(sides / "a.npz")["arr_0"].reshape(60, -1) / 127.5 - 1
    np.testing.assert_allclose(whole.law.means[0], x.mean(0), atol=1e-6)
    labelled = tmp_path / "labelled.npz"
    np.savez(labelled, images=np.load(sides / "a.npz")["arr_0"], labels=np.arange(60) % 3)
    by = ("--gaussian", "--per-class", "--rank", 6)
    said = run("stats", labelled, *by, "--out", tmp_path / "c.safetensors").stdout
    classes = GaussianData.load(tmp_path / "c.safetensors")
    assert said.startswith(f"3 normal laws by class of {labelled}, 6 of 784 directions with ")
    assert f"{classes.explained.min():.2%} to {classes.explained.max():.2%}" in said
    assert (classes.by, classes.shape, classes.law.vectors.shape) == (
        "class", (1, 28, 28), (3, 784, 6),
    )  # fmt: skip
    np.testing.assert_allclose(classes.law.means[1], x[1::3].mean(0), atol=1e-6)
    run(
        "stats", sides / "a.npz", "--gaussian", "--clusters", 2, "--out", tmp_path / "k.safetensors"
    )
    assert GaussianData.load(tmp_path / "k.safetensors").by == "cluster"


def test_the_law_of_a_published_pca(tmp_path):
    values, vectors = np.arange(1.0, 13), np.eye(12)
    parts = {"eigval": values, "eigvec": vectors, "imgmean": np.full((3, 2, 2), 0.25)}
    torch.save({k: torch.tensor(v) for k, v in parts.items()}, tmp_path / "b_PCA.pt")
    out = tmp_path / "b.safetensors"
    said = run("stats", tmp_path / "b_PCA.pt", "--gaussian", "--rank", 2, "--out", out).stdout
    assert said.startswith("1 normal law of b_PCA.pt, 2 of 12 directions with 29.49% of")
    found = GaussianData.load(out)
    assert found.law.values.tolist() == [[48.0, 44.0]]
    assert found.law.means.unique().tolist() == [-0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rank", 3), "--rank is about normal laws of pixels: say --gaussian, too"),
        (("--per-class",), "--per-class is about normal laws"),
        (("--gaussian", "--members", 3), "--members is about features"),
        (("--gaussian", "--per-class", "--clusters", 3), "give one"),
        (("--gaussian", "--per-class"), "has no classes"),
    ],
)
def test_options_that_say_nothing_of_a_law_are_errors(sides, tmp_path, options, said):
    out = tmp_path / "a.safetensors"
    assert said in refused("stats", sides / "a.npz", *options, "--out", out)
    assert not out.exists()


def test_laws_go_into_a_file_of_their_own_kind(sides, tmp_path):
    found = refused("stats", sides / "a.npz", "--gaussian", "--out", tmp_path / "a.npz")
    assert "written as .safetensors, not 'a.npz'" in found
