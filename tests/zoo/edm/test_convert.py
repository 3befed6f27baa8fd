import json
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from fewstep.zoo.edm import EDMNetwork, load_edm, read_edm, save_edm
from fewstep.zoo.edm.published import config_of
from fewstep.zoo.pickles import UnsafePickle
from torch import nn

SONG = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
NCSNPP = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 3,
    "model_channels": 64,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.1,
    "label_dropout": 0.1,
    "use_fp16": True,
}
NETWORKS = {
    "ddpmpp": ("EDMPrecond", {**SONG, "augment_dim": 9, "sigma_min": 0.002, "sigma_max": 80}),
    "ncsnpp": ("VEPrecond", NCSNPP),
    "vp": ("VPPrecond", {**SONG, "label_dim": 3, "beta_d": 19.0}),
    "adm": ("EDMPrecond", ADM),
    "iddpm": ("iDDPMPrecond", {**ADM, "M": 10}),
}
# The whole module as text stands in every published file, and is what loading it would run.
SOURCE = "raise RuntimeError('the source in the file was run')"
BUFFERS = ("resample_filter", "freqs", "u")


class Persistent:
    """An object that pickles as NVIDIA's `persistence` makes it."""

    def __init__(self, class_name, state):
        meta = {"type": "class", "version": 6, "module_src": SOURCE}
        self.meta = {**meta, "class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module_state(tensors, **own):
    """What torch keeps of a module, with its parts as persistent objects."""
    state = {
        "training": False,
        "_parameters": OrderedDict(bias=None),
        "_buffers": OrderedDict(scratch=torch.ones(2)),
        "_non_persistent_buffers_set": {"scratch"},
        "_forward_hooks": OrderedDict(),
        "_modules": OrderedDict(nothing=None),
        # Blocks keep the square root of 1/2 as a number of numpy.
        "skip_scale": np.sqrt(0.5),
        **own,
    }
    parts = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = value
        elif first in BUFFERS:
            state["_buffers"][first] = value
        else:
            state["_parameters"][first] = nn.Parameter(value, requires_grad=False)
    for name, part in parts.items():
        state["_modules"][name] = (
            torch_dict(part) if name in ("enc", "dec") else Persistent("Part", module_state(part))
        )
    return state


def torch_dict(tensors):
    """torch's own container, which is not persistent."""
    container = nn.ModuleDict()
    container.__dict__.update(module_state(tensors))
    return container


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Write a file as NVIDIA published them; the classes are gone afterwards."""

    def refuse(meta):
        raise RuntimeError("the file was run")

    refuse.__module__, refuse.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = refuse

    def write(class_name, options, tensors, args=(), **more):
        state = module_state(tensors, _init_args=args, _init_kwargs=options)
        path = tmp_path / "network.pkl"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
            patch.setitem(sys.modules, "torch_utils.persistence", persistence)
            path.write_bytes(pickle.dumps({"ema": Persistent(class_name, state), **more}))
        return path

    return write


def official(name):
    """The last layers of ADM stand beside the decoder in the published files."""
    return name.replace("dec.8x8_aux_", "out_")


def published(name):
    """Class, options, and random tensors under their published names."""
    class_name, options = NETWORKS[name]
    torch.manual_seed(0)
    net = EDMNetwork(config_of(class_name, options))
    adm = "SongUNet" not in options.values()
    tensors = {official(n) if adm else n: v.clone() for n, v in net.state_dict().items()}
    if class_name == "iDDPMPrecond":
        tensors["u"] = torch.linspace(9, 0, 11)
    return class_name, options, tensors


@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_file_is_read(name, publish):
    class_name, options, tensors = published(name)
    found = read_edm(publish(class_name, options, tensors, loss_fn=None))
    assert not found.training
    assert not any(each.requires_grad for each in found.parameters())
    state = found.state_dict()
    for key, value in tensors.items():
        if key != "u":
            ours = state.pop(key if key in state else key.replace("out_", "dec.8x8_aux_"))
            assert torch.equal(ours, value), key
    assert not state
    labels = torch.tensor([0, 2]) if found.label_dim else None
    out = found(torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0]), labels)
    assert out.isfinite().all()


def test_options_reach_the_network(publish):
    found = read_edm(publish(*published("ddpmpp")))
    assert (found.sigma_min, found.sigma_max, found.sigma_data) == (0.002, 80, 0.5)
    assert (found.img_resolution, found.img_channels, found.label_dim) == (8, 3, 0)
    vp = read_edm(publish(*published("vp")))
    assert vp.preconditioning.beta_d == 19.0
    assert vp.label_dim == 3


def test_levels_of_iddpm_are_those_of_the_file(publish):
    found = read_edm(publish(*published("iddpm")))
    assert found.preconditioning.levels == tuple(torch.linspace(9, 0, 11).tolist())
    assert (found.sigma_min, found.sigma_max) == pytest.approx((0.9, 9.0))
    assert found.model.config.out_channels == 6


def test_options_by_position(publish):
    class_name, options, tensors = published("ncsnpp")
    rest = {k: v for k, v in options.items() if k not in ("img_resolution", "img_channels")}
    found = read_edm(publish(class_name, rest, tensors, args=(8, 3)))
    assert found.config == read_edm(publish(class_name, options, tensors)).config
    with pytest.raises(ValueError, match="made with 5 positional options"):
        read_edm(publish(class_name, rest, tensors, args=(8, 3, 0, False, 1)))


def test_half_precision_tensors_are_widened(publish):
    class_name, options, tensors = published("ncsnpp")
    found = read_edm(publish(class_name, options, {k: v.half() for k, v in tensors.items()}))
    assert {v.dtype for v in found.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", NETWORKS)
def test_save_and_load_are_bit_equal(name, publish, tmp_path):
    net = read_edm(publish(*published(name)))
    folder = tmp_path / "deep" / "folder"
    save_edm(net, folder)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    again = load_edm(folder)
    assert again.config == net.config
    assert not again.training
    assert again.state_dict().keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 5.0])
    assert torch.equal(again(x, sigma), net(x, sigma))


def test_an_interrupted_save_leaves_the_old_file(publish, tmp_path, monkeypatch):
    net = read_edm(publish(*published("ncsnpp")))
    save_edm(net, tmp_path / "net")
    before = (tmp_path / "net" / "model.safetensors").read_bytes()

    def broken(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setitem(save_edm.__globals__, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        save_edm(net, tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "net")) == ["config.json", "model.safetensors"]


def test_missing_files_and_damaged_ones_are_told(publish, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        load_edm(tmp_path / "none")
    folder = tmp_path / "net"
    save_edm(read_edm(publish(*published("ncsnpp"))), folder)
    config = json.loads((folder / "config.json").read_text())
    for text in ("{", "[]", "{}", json.dumps({**config, "unet": {"style": {}}})):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="net: not a network of `save_edm`"):
            load_edm(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="net: not a network of `save_edm`"):
        load_edm(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        load_edm(folder)


def test_tensors_that_do_not_fit_are_named(publish):
    class_name, options, tensors = published("ncsnpp")
    tensors["model.extra.weight"] = tensors.pop("model.map_layer0.weight")
    tensors["model.map_layer1.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="do not fit") as caught:
        read_edm(publish(class_name, options, tensors))
    told = str(caught.value)
    assert "missing: model.map_layer0.weight;" in told
    assert "unexpected: model.extra.weight;" in told
    assert "of another shape: model.map_layer1.bias)" in told
    assert "network.pkl" in told


def test_unknown_classes_and_options_are_told(publish):
    class_name, options, tensors = published("ncsnpp")
    known = "known are VPPrecond, VEPrecond, iDDPMPrecond, EDMPrecond"
    with pytest.raises(ValueError, match=f"'Generator' is not known: {known}"):
        read_edm(publish("Generator", options, tensors))
    with pytest.raises(ValueError, match="'Unet' is not known: known are SongUNet, DhariwalUNet"):
        read_edm(publish(class_name, {**options, "model_type": "Unet"}, tensors))
    with pytest.raises(ValueError, match="options that are not known: novel; known are"):
        read_edm(publish(class_name, {**options, "novel": 1}, tensors))
    with pytest.raises(ValueError, match="embedding_type 'odd' is not known"):
        read_edm(publish(class_name, {**options, "embedding_type": "odd"}, tensors))
    with pytest.raises(ValueError, match="without img_resolution"):
        read_edm(publish(class_name, {"img_channels": 3}, tensors))
    with pytest.raises(ValueError, match=r"network\.pkl"):
        read_edm(publish(class_name, {**options, "channel_mult": None}, tensors))


@pytest.mark.parametrize("trust_pickle", [False, True])
def test_other_files_are_told(trust_pickle, tmp_path):
    path = tmp_path / "other.pkl"
    with pytest.raises(FileNotFoundError):
        read_edm(path, trust_pickle=trust_pickle)
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"other\.pkl: not a pickle"):
        read_edm(path, trust_pickle=trust_pickle)
    path.write_bytes(pickle.dumps({"G": 1, "D": 2}))
    with pytest.raises(ValueError, match=r"other\.pkl: no network: .*'ema', found G, D"):
        read_edm(path, trust_pickle=trust_pickle)
    path.write_bytes(pickle.dumps({"ema": [1]}))
    with pytest.raises(ValueError, match=r"other\.pkl: .*network of NVIDIA's"):
        read_edm(path, trust_pickle=trust_pickle)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path),)


def test_hidden_calls_do_not_run(publish, tmp_path):
    target = tmp_path / "made"
    class_name, options, tensors = published("ncsnpp")
    read_edm(publish(class_name, options, tensors, loss_fn=Evil(target)))
    evil = publish(class_name, options, tensors)
    evil.write_bytes(pickle.dumps({"ema": Evil(target)}))
    with pytest.raises(UnsafePickle, match=r"os\.makedirs.*`trust_pickle=True`.*runs code from"):
        read_edm(evil)
    assert not target.exists()
    with pytest.raises(ValueError, match="network of NVIDIA's"):
        read_edm(evil, trust_pickle=True)
    assert target.exists()


def test_trusted_files_are_run(publish, monkeypatch):
    class_name, options, tensors = published("adm")
    path = publish(class_name, options, tensors)
    with pytest.raises(ValueError, match=r"running it needs torch_utils.*NVlabs/edm"):
        read_edm(path, trust_pickle=True)

    def reconstruct(meta):
        state = meta["state"]
        fields = {"_init_args": state.get("_init_args"), "_init_kwargs": state.get("_init_kwargs")}
        kind = type(meta["class_name"], (), {**fields, "state_dict": lambda self: tensors})
        return kind()

    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = reconstruct
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)
    found, restricted = read_edm(path, trust_pickle=True), read_edm(path)
    assert found.config == restricted.config
    for key, value in restricted.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)
