from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from fewstep.eval import store


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    store.write_atomically(path, "old")

    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        store.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_arrays_come_back_only_for_their_key(tmp_path):
    path = tmp_path / "cells" / "a.npz"
    store.write_arrays(path, "k1", {"x": np.arange(3.0)})
    assert store.read_arrays(path, "k1")["x"].tolist() == [0, 1, 2]
    assert store.read_arrays(path, "k2") is None
    assert store.read_arrays(tmp_path / "none.npz", "k1") is None


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_damaged_file_counts_as_absent(tmp_path, keep):
    path = tmp_path / "a.npz"
    store.write_arrays(path, "k", {"x": np.arange(1000.0)})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert store.read_arrays(path, "k") is None


def test_digest_tells_parts_apart():
    values = [
        store.digest("ab", "c"),
        store.digest("a", "bc"),
        store.digest(np.zeros(2)),
        store.digest(np.zeros((2, 1))),
        store.digest(np.zeros(2, dtype=np.float32)),
        store.digest([0.0, 0.0]),
    ]
    assert len(set(values)) == len(values)
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})


def test_fingerprint_sees_every_number():
    network = torch.nn.Linear(3, 2)
    before = store.fingerprint(network)
    assert store.fingerprint(network) == before
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert store.fingerprint(network) != before
