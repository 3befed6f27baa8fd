from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from fewstep.eval.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Neighbours,
    moments,
)
from torch import distributed

D, BATCHES, BATCH = 6, 8, 10
# Batches of each process, from and to.
SHARES = {"uneven": ((0, 3), (3, BATCHES)), "one is empty": ((0, BATCHES), (0, 0))}


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + seed / 9


REAL, FAKE = normal(60, D, 1), normal(BATCHES * BATCH, D, 2)


def metrics():
    return {
        "frechet": FrechetDistance(moments(REAL), blocks=BATCHES),
        "kernel": KernelDistance(REAL, blocks=BATCHES, subsets=3, subset_size=20),
        "neighbours": Neighbours(REAL, blocks=BATCHES),
        "score": InceptionScore(D, splits=2, blocks=BATCHES),
    }


def values(found):
    """All that a metric says, before and after one that has all samples is asked again."""
    seen = {}
    for name, metric in found.items():
        seen[name] = (metric.estimate(), metric.compute(), metric.estimate())
    seen["spread"] = (found["kernel"].spread(), found["score"].spread())
    with found["frechet"].synced():
        seen["moments"] = found["frechet"].moments()
    return seen


def work(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    seen = {}
    for case, shares in SHARES.items():
        found, mine = metrics(), range(BATCHES)[slice(*shares[rank])]
        for metric in found.values():
            # An empty update skips a block; a process without a batch has no update at all.
            for k, part in enumerate(FAKE.split(BATCH) if mine else ()):
                metric.update(part if k in mine else part[:0])
        whole = values(found)
        left = int(found["frechet"].count.sum()), sum(map(len, found["kernel"].features))
        seen[case] = whole, left
    torch.save(seen, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    found = metrics()
    for metric in found.values():
        for part in FAKE.split(BATCH):
            metric.update(part)
    return values(found)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    # This file as a program: a spawned process does not find modules of tests everywhere.
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", str(folder)])
        for rank in range(2)
    ]
    assert [each.wait(120) for each in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def same(a, b):
    assert a.value == pytest.approx(b.value, rel=1e-10, abs=1e-12)
    assert a.replicates == pytest.approx(b.replicates, rel=1e-10, abs=1e-12)
    assert a.sizes.tolist() == b.sizes.tolist()


@pytest.mark.parametrize("case", SHARES)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["frechet", "kernel", "score", "neighbours"])
def test_values_of_two_processes_are_those_of_one(name, rank, case, alone, together):
    (before, value, after), expected = together[rank][case][0][name], alone[name][0]
    if name != "neighbours":
        before, value, after, expected = ({name: x} for x in (before, value, after, expected))
    for key in expected:
        same(before[key], expected[key])
        same(after[key], expected[key])
        assert float(value[key]) == pytest.approx(expected[key].value, rel=1e-10)


@pytest.mark.parametrize("case", SHARES)
def test_moments_are_equal_to_the_last_bit_where_a_block_has_one_process(case, alone, together):
    for seen in together:
        assert torch.equal(seen[case][0]["moments"].mean, alone["moments"].mean)
        assert torch.equal(seen[case][0]["moments"].cov, alone["moments"].cov)


@pytest.mark.parametrize("case", SHARES)
def test_spreads_are_over_all_samples(case, alone, together):
    for seen in together:
        for got, expected in zip(seen[case][0]["spread"], alone["spread"], strict=True):
            assert [float(x) for x in got] == pytest.approx([float(x) for x in expected], rel=1e-10)


@pytest.mark.parametrize("case", SHARES)
def test_a_process_keeps_its_own_samples_only(case, together):
    for seen, (first, last) in zip(together, SHARES[case], strict=True):
        assert seen[case][1] == (BATCH * (last - first),) * 2


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
