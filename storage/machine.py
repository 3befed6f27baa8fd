"""What a run ran on: versions and hardware."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("fewstep", "torch", "numpy", "scipy", "diffusers", "torchmetrics")


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, for the records of a run."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": f"{device.type} ({kind})",
        "threads": str(torch.get_num_threads()),
        "platform": platform.system(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str:
    """The installed version of a distribution, "not installed" for a bare source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    """The processor as the system names it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
