from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fewstep.eval.generation import GenerateConfig, job_for, run_generate
from fewstep.eval.images import quantise
from fewstep.eval.models import in_batches
from fewstep.eval.processes import Processes
from fewstep.samplers import GaussianData
from fewstep.samplers import exact as exact_laws
from PIL import Image
from pydantic import ValidationError

from .models.exact import CLASSES, SCHEDULE, SHAPE, counted, exact, means


def generate(folder, *, model=None, force=False, features=(), asked="mnist", **values):
    defaults = {
        "model": asked,
        "solver": "dpmpp-2m",
        "nfe": 4,
        "count": 12,
        "batch_size": 3,
        "shard_size": 5,
    }
    config = GenerateConfig.model_validate({**defaults, **values})
    job = job_for(config, model or exact(), features)
    return run_generate(config, job, folder, force=force), job


def pictures(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def test_images_are_those_of_their_seeds(tmp_path):
    made, job = generate(tmp_path, first=7)
    images = in_batches(exact(), job.table, job.draw)
    found = pictures(tmp_path)
    assert sorted(found) == [f"{seed:06d}" for seed in range(7, 19)]
    for row, name in enumerate(sorted(found)):
        np.testing.assert_array_equal(found[name], quantise(images)[row].movedim(0, -1))
    assert job.draw.labels.tolist() == [seed % CLASSES for seed in range(7, 19)]
    assert made["images"] == 12
    assert made["nfe"] == made["calls_per_image"] == 4
    assert made["seconds_per_image"] > 0
    assert made["outside"] == pytest.approx((images.abs() > 1).double().mean().item())


def test_one_file_is_laid_out_as_in_adm(tmp_path):
    _, job = generate(tmp_path, keep="npz")
    with np.load(tmp_path / "samples.npz") as file:
        pixels, seeds = file["arr_0"], file["seeds"]
    assert pixels.dtype == np.uint8
    assert seeds.tolist() == list(range(12))
    images = quantise(in_batches(exact(), job.table, job.draw))
    np.testing.assert_array_equal(pixels, images.movedim(1, -1))
    assert not pictures(tmp_path)


def test_features_alone_are_kept(tmp_path):
    made, _ = generate(tmp_path, keep="none", extractors=["means"], features=(means(),))
    assert made["images"] == 12
    assert not pictures(tmp_path)
    with pytest.raises(ValidationError, match="keeps nothing"):
        GenerateConfig(keep="none")


def test_more_and_other_seeds_are_added_without_sampling_again(tmp_path):
    model, seeds = counted()
    generate(tmp_path, model=model, count=10)
    generate(tmp_path, model=model, count=20)
    assert seeds == list(range(20))
    generate(tmp_path, model=model, first=20, count=5)
    generate(tmp_path, model=model, count=20)
    assert seeds == list(range(25))
    assert len(pictures(tmp_path)) == 25


def test_images_may_be_kept_in_another_way_and_features_added(tmp_path):
    model, seeds = counted()
    generate(tmp_path, model=model)
    generate(tmp_path, model=model, extractors=["means"], features=(means(),))
    generate(tmp_path, model=model, keep="npz")
    assert len(seeds) == 12
    with np.load(tmp_path / "samples.npz") as file:
        found = file["arr_0"]
    for seed, image in pictures(tmp_path).items():
        np.testing.assert_array_equal(image, found[int(seed)])


def test_another_name_of_the_same_model_is_no_other_model(tmp_path):
    model, seeds = counted()
    generate(tmp_path, model=model)
    generate(tmp_path, model=model, asked={"id": "moved/mnist", "label": "digits"})
    assert len(seeds) == 12


def test_a_batch_size_may_change(tmp_path):
    model, seeds = counted()
    generate(tmp_path, model=model)
    generate(tmp_path, model=model, batch_size=4)
    assert len(seeds) == 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nfe": 5}, "nfe: 4 there, 5 asked for"),
        ({"guidance": 2.0}, "guidance: 1.0 there, 2.0 asked for"),
        ({"labels": 1}, "labels: balanced there, 1 asked for"),
        ({"solver": "ddim"}, "solver: dpmpp-2m there, ddim asked for"),
        ({"shard_size": 6}, "shard_size: 5 there"),
    ],
)
def test_images_of_other_settings_are_refused(tmp_path, change, said):
    generate(tmp_path)
    settings = (tmp_path / "generate.json").read_text()
    with pytest.raises(ValueError, match=said):
        generate(tmp_path, **change)
    assert (tmp_path / "generate.json").read_text() == settings


def test_other_weights_are_refused(tmp_path):
    generate(tmp_path)
    model = exact()
    model.network.means[0] += 1
    with pytest.raises(ValueError, match=r"weights: \w+ there"):
        generate(tmp_path, model=model)


def test_force_leaves_no_image_of_other_settings(tmp_path):
    generate(tmp_path)
    (tmp_path / "notes.png").touch()
    model, seeds = counted()
    generate(tmp_path, nfe=5, count=6, model=model, force=True)
    assert seeds == list(range(6))
    (tmp_path / "notes.png").unlink()
    assert len(pictures(tmp_path)) == 6
    assert json.loads((tmp_path / "generate.json").read_text())["settings"]["nfe"] == 5
    # Of the same settings nothing is lost.
    generate(tmp_path, nfe=5, count=6, model=model, force=True)
    assert len(seeds) == 6


def in_two(folder, progress=lambda rank: None, **values):
    barrier = threading.Barrier(2, timeout=30)

    def one(rank):
        config = GenerateConfig.model_validate(
            {"solver": "dpmpp-2m", "nfe": 4, "count": 20, "shard_size": 5, **values}
        )
        told = []
        job = job_for(config, exact(), ())
        processes = Processes(rank, 2, barrier.wait)
        try:
            made = run_generate(config, job, folder, lambda *done: told.append(done), processes)
        except ValueError as error:
            barrier.abort()
            return str(error), told
        return made, told

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setattr("fewstep.eval.generation.check_shared", lambda folder, processes: None)


def test_two_processes_share_the_work(tmp_path, shared):
    (first, told), (second, more) = in_two(tmp_path)
    assert first["images"] == 20
    assert second == {}
    assert len(pictures(tmp_path)) == 20
    # Each says how far it is with its own part.
    for done in (told, more):
        assert done[-1][:2] == (2 * 5 * 4, 2 * 5 * 4)


def test_all_processes_refuse_other_settings(tmp_path, shared):
    generate(tmp_path)
    for said, _ in in_two(tmp_path, nfe=6):
        assert "nfe: 4 there, 6 asked for" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"labels": "balance"}, "labels are balanced, random or one number"),
        ({"labels": 3}, "label 3 is not one of 0 to 2"),
        ({"solver": "nope"}, "unknown solver 'nope'"),
        ({"spacing": "nope"}, "unknown spacing"),
        ({"noise_device": "tpu"}, "noise_device"),
        ({"first": 2**32 - 5}, "seeds end at 4294967295"),
        ({"first": -1}, "first"),
        ({"count": 0}, "count"),
        ({"kepe": "png"}, "kepe"),
    ],
)
def test_bad_settings_are_refused(tmp_path, values, said):
    with pytest.raises(ValueError, match=said):
        generate(tmp_path, **values)
    assert not list(tmp_path.iterdir())


def test_a_model_without_classes(tmp_path):
    generate(tmp_path / "a", model=exact(classes=None))
    with pytest.raises(ValueError, match="label 1: this model has no classes"):
        generate(tmp_path / "b", model=exact(classes=None), labels=1)
    with pytest.raises(ValueError, match="guidance 2: exact has no classes to guide"):
        generate(tmp_path / "c", model=exact(classes=None), guidance=2.0)


def test_force_leaves_no_shard_of_other_settings(tmp_path):
    generate(tmp_path, count=12)
    generate(tmp_path, count=6, nfe=5, force=True)
    assert {path.name[:8] for path in (tmp_path / "shards").iterdir()} == {"00000000", "00000005"}


def test_what_is_done_is_not_counted_as_left(tmp_path, shared):
    in_two(tmp_path, count=10)
    for _, told in in_two(tmp_path, count=20):
        assert told[-1][:2] == (5 * 4, 5 * 4)


def law(path, spread):
    """A file of a law for every class."""
    means = np.repeat(np.array([[-0.8], [0.0], [0.8]]), 48, 1)
    GaussianData(exact_laws.mixture(means, std=spread), SHAPE, "class").save(path)
    return str(path)


def test_images_may_begin_late_and_remember_by_which_laws(tmp_path):
    path = tmp_path / "laws.safetensors"
    most = float(SCHEDULE.nsr(SCHEDULE.t_max))

    def begun(folder, skip, spread=0.4):
        start = {"teleport": law(path, spread), "skip": skip}
        generate(tmp_path / folder, solver={"name": "dpmpp-2m", "start": start})
        return pictures(tmp_path / folder)

    generate(tmp_path / "bare")
    bare = pictures(tmp_path / "bare")
    same, late = begun("same", most), begun("late", 2.0)
    assert all(np.array_equal(same[seed], bare[seed]) for seed in bare)
    assert not any(np.array_equal(late[seed], bare[seed]) for seed in bare)
    again = begun("again", 2.0)
    assert all(np.array_equal(again[seed], late[seed]) for seed in bare)
    # The file is not what it was.
    with pytest.raises(ValueError, match="table: "):
        begun("late", 2.0, spread=0.5)
