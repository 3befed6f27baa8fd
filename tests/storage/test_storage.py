from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from fewstep import storage


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    storage.write_atomically(path, "old")

    def stop(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_arrays_come_back_only_for_their_key(tmp_path):
    path = tmp_path / "cells" / "a.npz"
    storage.write_arrays(path, "k1", {"x": np.arange(3.0)})
    assert storage.read_arrays(path, "k1")["x"].tolist() == [0, 1, 2]
    assert storage.read_arrays(path, "k2") is None
    assert storage.read_arrays(tmp_path / "none.npz", "k1") is None


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_damaged_file_counts_as_absent(tmp_path, keep):
    path = tmp_path / "a.npz"
    storage.write_arrays(path, "k", {"x": np.arange(1000.0)})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert storage.read_arrays(path, "k") is None


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_never_changes_an_array(tmp_path, bit):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(6.0).reshape(2, 3)}
    storage.write_arrays(path, "k", arrays)
    content = path.read_bytes()
    lost = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        found = storage.read_arrays(path, "k")
        lost += found is None
        if found is not None:
            np.testing.assert_array_equal(found["x"], arrays["x"], strict=True)
    assert lost > 0.5 * len(content)


def test_a_shape_that_became_smaller_is_damage(tmp_path):
    # numpy would read only so much, and never come to the checksum.
    path = tmp_path / "a.npz"
    storage.write_arrays(path, "k", {"x": np.zeros((9000, 2))})
    content = path.read_bytes()
    assert content.count(b"(9000, 2)") == 1
    path.write_bytes(content.replace(b"(9000, 2)", b"(1000, 2)"))
    assert storage.read_arrays(path, "k") is None


def test_digest_tells_parts_apart():
    values = [
        storage.digest("ab", "c"),
        storage.digest("a", "bc"),
        storage.digest(np.zeros(2)),
        storage.digest(np.zeros((2, 1))),
        storage.digest(np.zeros(2, dtype=np.float32)),
        storage.digest([0.0, 0.0]),
    ]
    assert len(set(values)) == len(values)
    assert storage.digest({"a": 1, "b": 2}) == storage.digest({"b": 2, "a": 1})


def test_fingerprint_sees_every_number():
    network = torch.nn.Linear(3, 2)
    before = storage.fingerprint(network)
    assert storage.fingerprint(network) == before
    with torch.no_grad():
        network.bias[1] += 1e-6
    assert storage.fingerprint(network) != before


def test_fingerprint_tells_bfloat16_from_the_same_numbers_in_float32():
    network = torch.nn.Linear(3, 2).bfloat16()
    before = storage.fingerprint(network)
    assert storage.fingerprint(network) == before
    assert storage.fingerprint(network.float()) != before
    with torch.no_grad():
        network.bfloat16().weight[0, 0] *= 1.01
    assert storage.fingerprint(network) != before
