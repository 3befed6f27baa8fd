from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fewstep
import pytest
from fewstep.search.presets import preset
from fewstep.search.s3 import archive as module
from fewstep.search.s3.archive import Archive, Entry, Proposal, Verdict, alive

from .problem import LAW

SCHEDULE = preset("unipc-3", fewstep.grid(LAW, 4))


def proposals(count, first=0):
    return [
        Proposal(f"k{k}", SCHEDULE, "drawn", stage=k, rank=2, predicted=0.5, tau=0.25)
        for k in range(first, first + count)
    ]


def test_what_is_finished_comes_back_in_the_order_in_which_it_was(tmp_path):
    archive = Archive(tmp_path / "a" / "archive.sqlite")
    asked = proposals(3)
    assert archive.claim("judge", 4, asked) == asked
    assert archive.entries("judge", 4) == []
    assert len(archive.pending("judge", 4)) == 3
    verdicts = [Verdict(0.5, {"rmse": 0.5}, 2.0), Verdict(float("inf"), {}, 1.0)]
    archive.finish("judge", 4, [*map(Entry, (asked[2], asked[0]), verdicts)])
    found = Archive(archive.path).entries("judge", 4)
    assert [each.proposal for each in found] == [asked[2], asked[0]]
    assert [each.verdict for each in found] == verdicts
    assert len(archive.pending("judge", 4)) == 1
    archive.abandon()
    assert len(archive.pending("judge", 4)) == 0
    assert archive.claim("judge", 4, asked) == asked[1:2]


def test_a_schedule_is_claimed_once_by_judge_and_to_a_budget(tmp_path):
    archive = Archive(tmp_path / "archive.sqlite")
    assert len(archive.claim("judge", 4, proposals(5), most=3)) == 3
    assert archive.claim("judge", 4, proposals(5), most=3) == []
    assert [each.key for each in archive.claim("judge", 4, proposals(5))] == ["k3", "k4"]
    assert len(archive.claim("another", 4, proposals(5))) == 5


CLAIM = """
import os, sys
from pathlib import Path
from fewstep.search.s3.archive import Archive, Proposal
from fewstep.search.schedule import SolverSchedule, Step
schedule = SolverSchedule((999.0, -1.0), (Step(),))
archive = Archive(Path(sys.argv[1]))
for k in range(0, 60, 4):
    asked = [Proposal(f"k{i}", schedule, "drawn") for i in range(k, k + 4)]
    print(*(each.key for each in archive.claim("judge", 4, asked)), flush=True)
sys.stdin.readline()
os._exit(9)
"""


def started(path):
    paths = os.pathsep.join([str(Path(fewstep.__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(path)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_share_and_what_a_dead_one_left_is_free(tmp_path):
    path = tmp_path / "archive.sqlite"
    both = [started(path) for _ in range(2)]
    taken = [[*(key for _ in range(15) for key in each.stdout.readline().split())] for each in both]
    assert sorted(taken[0] + taken[1]) == sorted(f"k{k}" for k in range(60))
    archive = Archive(path)
    # Both live.
    assert len(archive.pending("judge", 4)) == 60
    assert archive.claim("judge", 4, proposals(60)) == []
    both[0].communicate("\n")
    assert {each.key for each in archive.claim("judge", 4, proposals(60))} == {*taken[0]}
    both[1].communicate("\n")


def test_what_a_process_that_is_gone_had_claimed_is_free(tmp_path):
    archive = Archive(tmp_path / "archive.sqlite")
    archive.claim("judge", 4, proposals(3))
    archive.finish("judge", 4, [Entry(proposals(1)[0], Verdict(1.0, {}, 1.0))])
    with sqlite3.connect(archive.path) as connection:
        connection.execute("update evaluations set owner = owner || '1'")
    assert len(archive.pending("judge", 4)) == 0
    assert [each.key for each in archive.claim("judge", 4, proposals(3))] == ["k1", "k2"]
    assert len(archive.entries("judge", 4)) == 1


def test_a_verdict_on_what_was_given_to_others_counts(tmp_path):
    archive = Archive(tmp_path / "archive.sqlite")
    (asked,) = archive.claim("judge", 4, proposals(1))
    archive.abandon()
    archive.finish("judge", 4, [Entry(asked, Verdict(1.0, {}, 1.0))])
    # Whoever was at it meanwhile is late.
    archive.finish("judge", 4, [Entry(asked, Verdict(2.0, {}, 1.0))])
    (entry,) = archive.entries("judge", 4)
    assert (entry.proposal, entry.verdict.score) == (asked, 1.0)
    assert archive.pending("judge", 4) == {}


def test_who_is_alive():
    node, number, began = Archive(Path("x")).owner.rsplit("/", 2)
    assert alive(f"{node}/{number}/{began}", 1e9)
    # A later process of the same number.
    assert not alive(f"{node}/{number}/{float(began) - 5}", 0)
    # What is elsewhere cannot be asked.
    assert alive(f"not-{node}/{number}/{began}", module.LEASE - 1)
    assert not alive(f"not-{node}/{number}/{began}", module.LEASE + 1)
    assert node == platform.node()


def test_a_batch_is_written_as_a_whole_or_not_at_all(tmp_path):
    archive = Archive(tmp_path / "archive.sqlite")
    archive.claim("judge", 4, proposals(2))
    bad = [Verdict(1.0, {}, 1.0), Verdict(1.0, {"rmse": object()}, 1.0)]
    broken = [*map(Entry, proposals(2), bad)]
    with pytest.raises(TypeError):
        archive.finish("judge", 4, broken)
    assert archive.entries("judge", 4) == []
    with pytest.raises(OSError, match="parameter 6"):
        archive.claim("judge", 4, [*proposals(1, 7), replace(proposals(1, 8)[0], stage=[1])])
    assert len(archive.pending("judge", 4)) == 2


def test_schedules_go_through_json(tmp_path):
    archive = Archive(tmp_path / "archive.sqlite")
    archive.claim("judge", 4, proposals(1))
    archive.finish("judge", 4, [Entry(proposals(1)[0], Verdict(1.0, {}, 1.0))])
    (entry,) = archive.entries("judge", 4)
    assert entry.proposal.schedule == SCHEDULE


def test_a_file_that_is_no_archive_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("no database" * 100)
    with pytest.raises(OSError, match=r"archive .*notes\.txt: file is not a database"):
        Archive(tmp_path / "notes.txt").entries("judge", 3)
    with pytest.raises(OSError, match="archive"):
        Archive(tmp_path).entries("judge", 3)
