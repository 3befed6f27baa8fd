"""The published networks of Karras et al. 2022, read without running their files."""

from .convert import load_edm, read_edm, save_edm
from .network import EDMNetwork

__all__ = ["EDMNetwork", "load_edm", "read_edm", "save_edm"]
