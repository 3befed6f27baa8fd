"""The command `fewstep`: it parses, calls and prints."""

from . import bench, distill, generate, models, score, search, steer, tables
from .app import app

__all__ = [
    "app",
    "bench",
    "distill",
    "generate",
    "main",
    "models",
    "score",
    "search",
    "steer",
    "tables",
]


def main() -> None:
    """Run the command."""
    app()
