"""Files of runs: written whole, identified by content, with a note of the machine."""

from .files import (
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_atomically,
    write_json,
)
from .identity import digest, fingerprint
from .interrupts import unbroken
from .machine import environment, version_of

__all__ = [
    "digest",
    "environment",
    "fingerprint",
    "read_arrays",
    "read_json",
    "replacing",
    "unbroken",
    "version_of",
    "write_arrays",
    "write_atomically",
    "write_json",
]
