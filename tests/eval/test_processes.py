from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from fewstep.eval import processes
from fewstep.eval.processes import ALONE, Processes, check_shared, launched


def check_together(folders):
    """What `check_shared` raises in processes that see these folders."""
    barrier = threading.Barrier(len(folders), timeout=30)

    def one(rank):
        try:
            check_shared(folders[rank], Processes(rank, len(folders), barrier.wait))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(one, range(len(folders))))


@pytest.fixture
def same_token(monkeypatch):
    """Threads agree on a token, as processes would."""

    def agree(values):
        values[0] = "token"

    monkeypatch.setattr(processes, "broadcast_object_list", agree)


def test_a_process_alone_waits_for_nobody(tmp_path):
    assert launched(torch.device("cpu")) is ALONE
    assert ALONE.first
    assert not replace(ALONE, rank=1).first
    check_shared(tmp_path / "none", ALONE)
    assert not (tmp_path / "none").exists()


def test_a_shared_folder_is_made_and_left_empty(tmp_path, same_token):
    assert check_together([tmp_path / "run"] * 3) == [None] * 3
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_ones_own_is_refused(tmp_path, same_token):
    said = check_together([tmp_path / "a", tmp_path / "b"])
    assert said[0] is None
    assert "process 1 does not see" in said[1]
