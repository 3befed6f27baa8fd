import builtins
import collections
import io
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import torch
from fewstep.zoo.pickles import DEFAULT, Inert, UnsafePickle, read_pickle


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args, state=None):
        self.recipe = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.recipe


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_what_pickle_reads(protocol):
    data = {
        "a": [1, 2.5, None, True, "text", b"bytes"],
        "b": ({1, 2}, frozenset({3}), 1 + 2j, bytearray(b"x"), slice(1, 2)),
        "c": collections.OrderedDict(x=1, y=2),
    }
    assert read_pickle(pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|u1", "|b1", "<c8", "<U3", "|S2", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_bit_equal(protocol, dtype, order):
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    content = pickle.dumps([array, array[0, 1]], protocol)
    found = read_pickle(content)
    assert isinstance(found[0], np.ndarray)
    assert found[0].dtype == pickle.loads(content)[0].dtype
    np.testing.assert_array_equal(found[0], array)
    assert (found[0].shape, found[1]) == ((2, 3), array[0, 1])


def test_arrays_under_the_names_of_old_numpy():
    content = pickle.dumps([np.arange(3.0), np.float64(2)], 3)
    assert b"numpy._core" in content or b"numpy.core" in content
    for core in (b"numpy._core.", b"numpy.core."):
        old = content.replace(b"numpy._core.", core).replace(b"numpy.core.", core)
        array, number = read_pickle(old)
        assert array.tolist() == [0, 1, 2]
        assert number == 2


@pytest.mark.filterwarnings("error")
def test_tensors_are_bit_equal_and_bare():
    shared = torch.randn(4, 3)
    parameter = torch.nn.Parameter(shared[:, 1:])
    parameter.note = "dropped"
    data = [shared.t(), parameter, torch.arange(3).half(), torch.float64, torch.Size([2, 3])]
    found = read_pickle(pickle.dumps(data))
    assert torch.equal(found[0], data[0])
    assert torch.equal(found[1], data[1])
    assert torch.equal(found[2], data[2])
    assert found[0].stride() == data[0].stride()
    assert isinstance(found[1], torch.nn.Parameter)
    assert not hasattr(found[1], "note")
    assert found[3:] == data[3:]


def test_statistics_of_a_reference_set(tmp_path):
    # The layout of the reference statistics of Karras et al. 2024.
    draw = np.random.default_rng(0).random
    stats = {
        "num_images": np.int64(50),
        "fid": {"mu": draw(8), "sigma": draw((8, 8))},
        "fd_dinov2": {"mu": draw(4), "sigma": draw((4, 4))},
    }
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps(stats))
    found = read_pickle(tmp_path / "stats.pkl")
    assert found["num_images"] == 50
    for key in ("fid", "fd_dinov2"):
        assert found[key].keys() == {"mu", "sigma"}
        for name, array in found[key].items():
            np.testing.assert_array_equal(array, stats[key][name])
    assert torch.from_numpy(found["fid"]["mu"]).dtype == torch.float64


EVIL = {
    "system": lambda path: Calls(os.system, f"touch {path}"),
    "eval": lambda path: Calls(builtins.eval, f"open({str(path)!r}, 'w')"),
    "exec": lambda path: Calls(builtins.exec, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Calls(open, str(path), "w"),
    "makedirs": lambda path: Calls(os.makedirs, str(path)),
    "getattr": lambda path: Calls(getattr, {}, "get"),
    "import": lambda path: Calls(builtins.__import__, "antigravity"),
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_are_refused_and_not_made(name, protocol, tmp_path):
    target = tmp_path / "made"
    content = pickle.dumps({"fine": 1, "deep": [({"x": EVIL[name](target)},)]}, protocol)
    with pytest.raises(UnsafePickle, match=r"asks for [a-z_]+\.[a-z_]+, which is not on the list"):
        read_pickle(content)
    read_pickle(content, inert=True)
    assert not target.exists()
    assert "antigravity" not in sys.modules


def test_a_call_hidden_in_the_bytes_of_a_tensor_is_refused(tmp_path):
    target = tmp_path / "made"
    hidden = io.BytesIO()
    torch.save(EVIL["system"](target), hidden, _use_new_zipfile_serialization=False)
    content = pickle.dumps(Calls(torch.storage._load_from_bytes, hidden.getvalue()))
    for inert in (False, True):
        with pytest.raises(UnsafePickle, match="bytes of a tensor hold more than numbers"):
            read_pickle(content, inert=inert)
    assert not target.exists()


def test_allowed_functions_cannot_be_changed():
    # BUILD on a function would set its attributes, such as __defaults__.
    name = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    content = name + pickle.dumps((None, {"__defaults__": (1,)}), 2)[2:-1] + b"b."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(UnsafePickle, match="tries to change tensor"):
        read_pickle(content)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_arrays_of_objects_are_refused():
    with pytest.raises(UnsafePickle, match="only numbers and text"):
        read_pickle(pickle.dumps(np.array([{}, []], dtype=object)))


def test_bytes_do_not_pass_for_pointers():
    # A dtype that calls itself plain while its code says object: numpy's own would believe it.
    number = Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0))
    reconstruct = np.zeros(1).__reduce__()[0]
    pointer = struct.pack("Q", id(None))
    array = Calls(reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), number, False, pointer))
    with pytest.raises(UnsafePickle, match="only numbers and text"):
        read_pickle(pickle.dumps(array))


@pytest.fixture
def elsewhere(monkeypatch):
    """A module with classes, which is gone when the pickle is read."""

    class Thing:
        def __init__(self, value):
            self.value = value

        def __setstate__(self, state):
            raise AssertionError("ran")

    class Options(dict):
        pass

    class Names(list):
        pass

    module = types.ModuleType("elsewhere")
    for kind in (Thing, Options, Names):
        kind.__module__, kind.__qualname__ = "elsewhere", kind.__name__
        setattr(module, kind.__name__, kind)

    def content():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "elsewhere", module)
            values = [Thing(5), Options(a=1), Names("xy"), Calls(Thing, 7)]
            return pickle.dumps(values)

    return content()


def test_unknown_classes_become_records(elsewhere):
    thing, options, names, made = read_pickle(elsewhere, inert=True)
    assert (thing.module, thing.name, thing.state) == ("elsewhere", "Thing", {"value": 5})
    assert (options.name, options.items) == ("Options", {"a": 1})
    assert (names.name, list(names.items.values())) == ("Names", ["x", "y"])
    assert (made.args, made.state) == ((7,), None)
    assert all(isinstance(each, Inert) for each in (thing, options, names, made))
    assert repr(thing) == "Inert(elsewhere.Thing)"
    assert "elsewhere" not in sys.modules


def test_unknown_classes_are_refused_by_name(elsewhere):
    with pytest.raises(UnsafePickle, match=r"elsewhere\.Thing"):
        read_pickle(elsewhere)


def test_own_list_of_constructors():
    content = pickle.dumps(Calls(os.getcwd))
    module = os.getcwd.__module__
    assert read_pickle(content, {(module, "getcwd"): lambda: "answered"}) == "answered"
    with pytest.raises(UnsafePickle, match="OrderedDict"):
        read_pickle(pickle.dumps(collections.OrderedDict()), {})
    assert ("builtins", "eval") not in DEFAULT


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04}(", pickle.dumps([1] * 9)[:-3]])
def test_what_is_no_pickle_is_told(content, tmp_path):
    with pytest.raises(ValueError, match="the data: not a pickle that can be read"):
        read_pickle(content)
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pkl: not a pickle that can be read"):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")
