from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep.eval import shards
from fewstep.eval.images import quantise
from fewstep.eval.models import Draw, in_batches
from fewstep.eval.processes import ALONE, Processes
from fewstep.eval.shards import NotFinite, collect, outstanding, run_job
from PIL import Image
from torch import nn

from .models.exact import SHAPE, Altered, Means, counted, exact, job, means, spoilt

TIMED = ("seconds",)


def content(job, folder):
    return {k: v for k, v in collect(job, folder).items() if k not in TIMED}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def run(job, folder, **options):
    run_job(job, folder, **options)
    return content(job, folder)


def together(make, folder, processes=2):
    """What each of some processes, here threads with a job each, returned or raised."""
    barrier = threading.Barrier(processes, timeout=30)

    def one(rank):
        try:
            return run_job(make(), folder, processes=Processes(rank, processes, barrier.wait))
        except Exception as error:
            return error

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, range(processes)))


def missing(job, folder):
    return [work.shard for work in outstanding(job, folder)]


def done(folder):
    """The first seeds of shards with all of the parts of a job without more."""
    names = [path.name.split(".") for path in folder.glob("*.npz")]
    first = {seed for seed, *_ in names}
    return {s for s in first if {"facts", "features-means"} <= {p for n, p, _ in names if n == s}}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def test_a_run_is_what_the_model_gives_at_once(tmp_path):
    own = job(21, keep="npz")
    found = run(own, tmp_path)
    images = in_batches(exact(), own.table, own.draw, 21)
    pixels = quantise(images)
    assert found["seeds"].tolist() == list(range(21))
    np.testing.assert_array_equal(found["pixels"], pixels)
    np.testing.assert_array_equal(found["means/features"], pixels.float().mean((2, 3)))
    outside = (images.abs() > 1).double().mean((1, 2, 3))
    assert outside.max() > 0
    np.testing.assert_array_equal(found["outside"], outside)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_image_does_not_depend_on_its_batch(tmp_path, batch_size):
    own = job(64, keep="npz", shard_size=64, batch_size=64)
    other = replace(own, batch_size=batch_size)
    one, two = run(own, tmp_path / "a"), run(other, tmp_path / "b")
    np.testing.assert_array_equal(one["pixels"], two["pixels"])


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(tmp_path, processes):
    def own():
        return job(1003, batch_size=64, shard_size=100, keep="npz")

    assert together(own, tmp_path / "many", processes) == [None] * processes
    found = content(own(), tmp_path / "many")
    assert found["seeds"].tolist() == list(range(1003))
    assert_same(found, run(own(), tmp_path / "one"))


def test_more_processes_than_shards(tmp_path):
    assert together(lambda: job(8), tmp_path, 3) == [None] * 3
    assert_same(content(job(8), tmp_path), run(job(8), tmp_path / "one"))


def test_each_shard_is_made_by_one_process(tmp_path):
    calls = [0, 0]
    barrier = threading.Barrier(2, timeout=30)

    def one(rank):
        def on_call(images):
            calls[rank] += images

        run_job(job(20), tmp_path, on_call, Processes(rank, 2, barrier.wait))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    assert calls == [(8 + 4) * 4, 8 * 4]


def killing(point):
    """The process ends at once: in the first batch, after a shard, or while it writes one."""
    if point == "writing":
        replaced, calls = os.replace, count()

        def stop(*paths):
            # The second of the three files of the second shard.
            if next(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            replaced(*paths)

        os.replace = stop
        return exact()

    def act(images, draw):
        if draw.seeds[0] >= {"start": 0, "second": 11}[point]:
            os.kill(os.getpid(), signal.SIGKILL)
        return images

    return Altered(exact(), act)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("point", "kept"), [("start", 0), ("second", 1), ("writing", 1)])
def test_a_killed_run_goes_on(tmp_path, point, kept, processes):
    def doomed():
        run_job(job(20, killing(point)), tmp_path / "killed")

    child = multiprocessing.get_context("fork").Process(target=doomed)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert len(missing(job(20), tmp_path / "killed")) == 3 - kept
    before = times(tmp_path / "killed")
    assert together(lambda: job(20), tmp_path / "killed", processes) == [None] * processes
    after = times(tmp_path / "killed")
    assert {name: after[name] for name in before} == before
    assert_same(content(job(20), tmp_path / "killed"), run(job(20), tmp_path / "whole"))


def test_an_interrupted_run_goes_on(tmp_path):
    def act(images, draw):
        if draw.seeds[0] == 11:
            raise KeyboardInterrupt
        return images

    own = job(20, Altered(exact(), act))
    with pytest.raises(KeyboardInterrupt):
        run_job(own, tmp_path)
    assert missing(own, tmp_path) == [range(8, 16), range(16, 20)]
    assert not own.model.network._forward_hooks


def flipped(content):
    # Within the numbers of the first array, behind its header.
    at = content.index(b"\x93NUMPY") + 128 + 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-9], lambda content: b""])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    whole = run(job(20), tmp_path)
    path = tmp_path / "00000008.facts.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"00000008.facts.npz is missing or damaged"):
        collect(job(20), tmp_path)
    before = times(tmp_path)
    assert_same(run(job(20), tmp_path), whole)
    assert [name for name, at in times(tmp_path).items() if at != before[name]] == [path.name]


def test_a_larger_run_makes_only_what_is_new(tmp_path):
    run(job(16), tmp_path)
    calls = []
    assert_same(run(job(24), tmp_path, on_call=calls.append), run(job(24), tmp_path / "whole"))
    assert sum(calls) == 8 * 4


def test_samples_that_are_not_finite_are_named_by_every_process(tmp_path):
    errors = together(lambda: job(40, spoilt(10, 25)), tmp_path)
    assert [type(error) for error in errors] == [NotFinite] * 2
    # Shards 1 and 3 belong to the second process, which stops at the first bad one.
    assert [error.seeds for error in errors] == [[10]] * 2
    assert "at least 1 samples are not finite" in str(errors[0])
    assert "seeds 10:" in str(errors[0])
    assert done(tmp_path) == {"00000000", "00000016", "00000032"}
    # Mended, the same command goes on.
    mended = run(job(40), tmp_path)
    assert mended["seeds"].tolist() == list(range(40))
    assert not list(tmp_path.glob("not-finite*"))


def test_bad_seeds_of_several_processes_are_put_together(tmp_path):
    errors = together(lambda: job(40, spoilt(1, 9, 10)), tmp_path)
    assert [error.seeds for error in errors] == [[1, 9, 10]] * 2


class Failing(nn.Module):
    def forward(self, images):
        raise RuntimeError("no features today")


def test_what_goes_wrong_beside_the_sampler_surfaces(tmp_path):
    own = job(extractors=(means(network=Failing()),))
    with pytest.raises(RuntimeError, match="no features today"):
        run_job(own, tmp_path)
    assert not own.model.network._forward_hooks
    assert not times(tmp_path)


def test_features_that_take_long_stay_in_order(tmp_path):
    class Slow(Means):
        def forward(self, images):
            time.sleep(0.03 if next(turns) % 2 == 0 else 0)
            return super().forward(images)

    turns = count()
    assert_same(run(job(extractors=(means(network=Slow()),)), tmp_path), run(job(), tmp_path / "b"))


def test_too_little_memory_is_said_and_a_smaller_batch_goes_on(tmp_path):
    def act(images, draw):
        if draw.seeds[0] >= 8 and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    model = Altered(exact(), act)
    with pytest.raises(ValueError, match="batches of 3 images: take a smaller --batch-size"):
        run_job(job(20, model), tmp_path)
    before = times(tmp_path)
    assert done(tmp_path) == {"00000000"}
    run_job(job(20, model, batch_size=2), tmp_path)
    assert {name: times(tmp_path)[name] for name in before} == before


def test_a_full_disk_loses_one_shard(tmp_path, monkeypatch):
    replaced, calls = os.replace, count()

    def full(*paths):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run_job(job(20), tmp_path)
    assert done(tmp_path) == {"00000000"}
    assert len(list(tmp_path.iterdir())) == 3
    run_job(job(20), tmp_path)
    assert len(done(tmp_path)) == 3


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 4), (2.0, 8)])
def test_calls_are_measured(tmp_path, guidance, calls):
    own = job(20)
    own = replace(own, draw=replace(own.draw, guidance=guidance))
    told = []
    run_job(own, tmp_path, told.append)
    assert collect(own, tmp_path)["calls"] == 20 * calls == sum(told)


def test_seconds_are_those_of_the_sampler(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(shards.time, "perf_counter", lambda: clock[0])

    def act(images, draw):
        clock[0] += 2.0
        return images

    run_job(own := job(20, Altered(exact(), act)), tmp_path)
    # Batches of 3 within shards of 8, 8 and 4.
    assert collect(own, tmp_path)["seconds"] == 2.0 * (3 + 3 + 2)


def test_a_preview_is_kept_of_the_first_images(tmp_path):
    found = run(job(20, preview=10), tmp_path)
    whole = run(job(20, keep="npz"), tmp_path / "npz")["pixels"]
    assert whole.shape == (20, *SHAPE)
    np.testing.assert_array_equal(found["pixels"], whole[:10])
    assert "samples" not in found


def test_samples_and_distances_to_a_target(tmp_path):
    own = job(20, keep="samples")
    samples = in_batches(exact(), own.table, own.draw)
    np.testing.assert_array_equal(run(own, tmp_path)["samples"], samples)
    shift = torch.arange(10.0).view(-1, 1, 1, 1)
    near = replace(own, target=samples[:10] + shift, target_key="shifted", target_size=10)
    gap = run(near, tmp_path / "near")["square_error"]
    np.testing.assert_allclose(gap, np.arange(10.0) ** 2, rtol=1e-5)


def test_pngs_are_named_by_their_seeds(tmp_path):
    own = job(6, keep="png")
    own = replace(own, draw=replace(own.draw, seeds=range(997, 1003)))
    run_job(own, tmp_path / "shards", pictures=tmp_path)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    names = [f"{997 + i:06d}.png" for i in range(6)]
    assert found == [f"{'000000' if name < '001000' else '001000'}/{name}" for name in names]
    pixels = quantise(in_batches(exact(), own.table, own.draw))
    picture = np.asarray(Image.open(tmp_path / "001000" / "001001.png"))
    np.testing.assert_array_equal(picture, pixels[4].movedim(0, -1))


def test_kept_samples_give_all_but_their_time(tmp_path):
    model, seeds = counted()
    run_job(job(20, model, keep="samples", extractors=(), preview=0), tmp_path)
    target = {"target": torch.zeros(20, *SHAPE), "target_key": "t", "target_size": 20}
    more = job(20, model, keep="samples", **target)
    found = run(more, tmp_path)
    assert len(seeds) == 20
    assert_same(found, run(more, tmp_path / "at once"))


@pytest.mark.parametrize("keep", ["npz", "png"])
def test_kept_images_are_not_sampled_again_for_more_features(tmp_path, keep):
    model, seeds = counted()
    run_job(job(20, model, keep=keep, extractors=()), tmp_path)
    assert len(seeds) == 20
    more = job(20, model, keep=keep, preview=15)
    found = run(more, tmp_path)
    assert len(seeds) == 20
    assert_same(found, run(more, tmp_path / "at once"))


@pytest.mark.parametrize("loss", [Path.unlink, lambda path: path.write_bytes(b"no image")])
def test_a_png_that_is_no_longer_there_is_sampled_again(tmp_path, loss):
    model, seeds = counted()
    run_job(job(20, model, keep="png", extractors=()), tmp_path)
    loss(tmp_path / "000000" / "000009.png")
    found = run(job(20, model, keep="png"), tmp_path)
    assert seeds[20:] == list(range(8, 16))
    assert_same(found, run(job(20, keep="png"), tmp_path / "whole"))
    again, whole = (
        np.asarray(Image.open(folder / "000000" / "000009.png"))
        for folder in (tmp_path, tmp_path / "whole")
    )
    np.testing.assert_array_equal(again, whole)


def test_a_deleted_png_is_written_again(tmp_path):
    run_job(job(20, keep="png"), tmp_path)
    (path := tmp_path / "000000" / "000009.png").unlink()
    run_job(job(20, keep="png"), tmp_path)
    assert path.exists()


def test_more_features_leave_the_others_and_the_times_as_they_were(tmp_path):
    run_job(job(20, target_key="t", target_size=5, target=torch.zeros(5, *SHAPE)), tmp_path)
    before = times(tmp_path)
    other = replace(means("2"), name="other")
    run_job(job(20, extractors=(means(), other), target_key="u"), tmp_path)
    after = times(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name.split(".")[1] for name in after if name not in before} == {"features-other"}


def test_features_of_another_version_are_made_again(tmp_path):
    run_job(job(20), tmp_path)
    newer = job(20, extractors=(means("2"),))
    assert missing(newer, tmp_path) == newer.shards


def test_a_target_is_known_by_its_key_and_its_part_in_the_shard(tmp_path):
    def near(size, key="t"):
        target = torch.zeros(size, *SHAPE)
        return job(20, target=target, target_key=key, target_size=size)

    run_job(near(10), tmp_path)
    assert missing(near(10), tmp_path) == []
    assert missing(near(12), tmp_path) == [range(8, 16)]
    assert missing(near(10, "u"), tmp_path) == [range(8), range(8, 16)]


def test_sampling_is_in_full_float32(tmp_path):
    before = torch.backends.cudnn.allow_tf32
    seen = []

    def act(images, draw):
        seen.append(torch.backends.cudnn.allow_tf32)
        return images

    try:
        torch.backends.cudnn.allow_tf32 = True
        run_job(job(8, Altered(exact(), act)), tmp_path, processes=ALONE)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert seen == [False] * 3


TARGET = {"target": torch.zeros(8, *SHAPE), "target_key": "t", "target_size": 8}


@pytest.mark.parametrize(
    ("kept", "lost", "changes"),
    [
        ("npz", False, {"keep": "samples"}),
        ("npz", False, {"keep": "npz", **TARGET}),
        ("npz", True, {"keep": "npz"}),
        ("samples", True, {"keep": "samples"}),
    ],
)
def test_what_is_exact_is_not_made_of_what_was_rounded(tmp_path, kept, lost, changes):
    run_job(job(8, keep=kept), tmp_path)
    if lost:
        (tmp_path / "00000000.facts.npz").unlink()
    more = job(8, **changes)
    assert_same(run(more, tmp_path), run(more, tmp_path / "whole"))


def test_features_belong_to_their_samples(tmp_path):
    run_job(job(8), tmp_path)
    ones = job(8, draw=Draw(range(8), torch.ones(8, dtype=torch.long)))
    assert_same(run(ones, tmp_path), run(ones, tmp_path / "whole"))


def test_nothing_is_to_be_sampled_where_images_were_kept(tmp_path):
    assert [work.samples for work in outstanding(job(20), tmp_path)] == [8, 8, 4]
    run_job(job(20, keep="npz", extractors=()), tmp_path)
    assert [work.samples for work in outstanding(job(20, keep="npz"), tmp_path)] == [0, 0, 0]


def test_pngs_are_looked_for_where_they_are(tmp_path):
    own = job(8, keep="png")
    run_job(own, tmp_path / "shards", pictures=tmp_path)
    assert outstanding(own, tmp_path / "shards", tmp_path) == []
    assert len(outstanding(own, tmp_path / "shards")) == 1


@pytest.mark.parametrize("bad", [(), (10,)])
def test_processes_meet_before_the_first_writes_and_twice_at_the_end(tmp_path, bad):
    files = []
    meeting = Processes(wait=lambda: files.append(len(list(tmp_path.iterdir()))))
    with pytest.raises(NotFinite) if bad else nullcontext():
        run_job(job(20, spoilt(*bad)), tmp_path, processes=meeting)
    whole = len(list(tmp_path.iterdir()))
    assert files == [0, whole, whole]


def test_few_batches_wait_for_slow_features(tmp_path):
    class Slow(Means):
        def forward(self, images):
            time.sleep(0.02)
            done.append(len(images))
            return super().forward(images)

    def act(images, draw):
        waiting.append(next(made) - len(done))
        return images

    done, waiting, made = [], [], count()
    slow = means(network=Slow())
    run_job(job(30, Altered(exact(), act), shard_size=30, extractors=(slow,)), tmp_path)
    assert len(waiting) == 10
    assert max(waiting) <= shards.AHEAD
