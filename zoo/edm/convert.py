"""NVIDIA's pickled networks into ours, and ours into a folder without code."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...storage import replacing, write_atomically
from ..pickles import Inert, UnsafePickle, read_pickle
from .network import EDMNetwork
from .published import config_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# The names of what networks may be made with by position.
POSITIONAL = ("img_resolution", "img_channels", "label_dim", "use_fp16")
# The head of ADM, which is written beside the decoder; ours is the last layer of it, as in DDPM++.
HEAD = re.compile(r"^model\.out_(norm|conv)\.")


class Published(NamedTuple):
    """A network as its file describes it: class, options, and tensors by name."""

    name: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]


def read_edm(path: str | Path, *, trust_pickle: bool = False) -> EDMNetwork:
    """The network in a pickle of NVlabs/edm, in evaluation mode, on the CPU, in float32.

    Nothing of the file is run: options and tensors are read out of inert records (`read_pickle`),
    and the network is ours. `trust_pickle=True` loads the file with `pickle` instead, which RUNS
    CODE FROM THE FILE and needs NVIDIA's repository on the import path: only for files that cannot
    be read otherwise, and whose source you trust as you trust a program.

    Raises FileNotFoundError; ValueError for a file that is no pickle or holds no network, a class
    or option that is not known (Karras et al. 2022: EDMPrecond, VPPrecond, VEPrecond,
    iDDPMPrecond), and missing or unexpected tensors, by name.
    """
    path = Path(path)
    content = executed(path) if trust_pickle else read_pickle(path, inert=True)
    description = live if trust_pickle else recorded
    try:
        return assembled(description(network_of(content)))
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path}: {error}. `trust_pickle=True` would load it, but runs code from the file: "
            f"only if you trust its source"
        ) from error
    # TypeError: options of a wrong type.
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def network_of(content: Any) -> Any:
    """The averaged network of a snapshot, or the object itself."""
    if not isinstance(content, dict):
        return content
    if "ema" not in content:
        raise ValueError(
            f"no network: expected the key 'ema', found {', '.join(map(str, content))}"
        )
    return content["ema"]


def recorded(record: Any) -> Published:
    """What a record of a persistent object says; UnsafePickle if it is something else."""
    meta = persistent(record)
    state = meta["state"]
    return Published(
        meta["class_name"],
        options_of(state.get("_init_args") or (), state.get("_init_kwargs") or {}),
        dict(tensors_of(record, "")),
    )


def persistent(record: Any) -> dict[str, Any]:
    """The description that a record of NVIDIA's `persistence` was called with."""
    if not isinstance(record, Inert) or record.name != "_reconstruct_persistent_obj":
        raise UnsafePickle(f"expected a persistent network of NVIDIA's, found {record!r}")
    meta = record.args[0] if len(record.args) == 1 else None
    if not isinstance(meta, dict) or not {"class_name", "state"} <= set(meta):
        raise UnsafePickle("a persistent network without class_name and state")
    if not isinstance(meta["class_name"], str) or not isinstance(meta["state"], dict):
        raise UnsafePickle("a persistent network whose class_name or state is of a wrong type")
    return meta


def options_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name."""
    if len(args) > len(POSITIONAL):
        raise ValueError(f"made with {len(args)} positional options, known are {POSITIONAL}")
    return {**dict(zip(POSITIONAL, args, strict=False)), **kwargs}


def tensors_of(record: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module that was recorded, persistent or torch's own, and of its parts."""
    own = isinstance(record, Inert) and record.module.startswith("torch.nn.")
    state = record.state if own else persistent(record)["state"]
    if not isinstance(state, dict):
        raise UnsafePickle(f"{record!r} has no state to read tensors from")
    hidden = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield prefix + name, value.detach()
    for name, module in (state.get("_modules") or {}).items():
        if module is not None:
            yield from tensors_of(module, f"{prefix}{name}.")


def executed(path: Path) -> Any:
    """The content of a file by running it; see `read_edm`."""
    try:
        with path.open("rb") as file:
            return pickle.load(file)
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not a pickle ({error})") from error
    except ImportError as error:
        raise ValueError(
            f"{path}: running it needs {error.name}: put a checkout of NVlabs/edm on the import "
            f"path, or leave out trust_pickle"
        ) from error


def live(network: Any) -> Published:
    """What a network of NVIDIA's own class says."""
    if not hasattr(network, "_init_kwargs"):
        raise ValueError(f"no persistent network of NVIDIA's, but a {type(network).__name__}")
    options = options_of(network._init_args or (), network._init_kwargs or {})
    return Published(type(network).__name__, options, network.state_dict())


def assembled(found: Published) -> EDMNetwork:
    """Our network with the options and tensors of a published one."""
    config = config_of(found.name, found.options)
    at = "model.dec.{0}x{0}_aux_".format(config["unet"]["resolution"])
    tensors = {HEAD.sub(rf"{at}\1.", name): value for name, value in found.tensors.items()}
    # The levels of iDDPM are noise levels, not weights; its rounding of them is the one trained on.
    if "u" in tensors and config["preconditioning"]["kind"] == "iddpm":
        config["preconditioning"]["levels"] = tensors.pop("u").tolist()
    return filled(config, tensors)


def filled(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EDMNetwork:
    """A network with these tensors; ValueError names those that do not fit."""
    # Without storage: the tensors are put in place, not copied over random numbers.
    with torch.device("meta"):
        network = EDMNetwork(config)
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    both = expected.keys() & shapes.keys()
    faults = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": sorted(name for name in both if expected[name] != shapes[name]),
    }
    told = [f"{what}: {listed(names)}" for what, names in faults.items() if names]
    if told:
        raise ValueError(f"the tensors do not fit the network ({'; '.join(told)})")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)


def listed(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def save_edm(network: EDMNetwork, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors`, each atomically; the folder is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    text = json.dumps(network.config, indent=1, allow_nan=False) + "\n"
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial)
    write_atomically(folder / CONFIG, text)


def load_edm(folder: str | Path) -> EDMNetwork:
    """The network that `save_edm` wrote, in evaluation mode, on the CPU.

    Raises FileNotFoundError naming a missing file; ValueError for a damaged one, or tensors that do
    not fit, by name.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {folder}: a network is the two files {CONFIG} and {WEIGHTS}, as "
                f"`save_edm` writes them"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return filled(config, load_file(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder}: not a network of `save_edm` ({reason})") from error
