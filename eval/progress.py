"""How far a long run is."""

from __future__ import annotations

from collections.abc import Callable

# progress(done, total, text) is called as the work goes on.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, text: str) -> None:
    """Tell nobody."""


class Counter:
    """Network evaluations x images done, of `total`; the one thing of a run that changes."""

    def __init__(self, progress: Progress, total: int = 0, text: str = "") -> None:
        self.done, self.total, self.text, self.progress = 0, total, text, progress

    def add(self, images: int) -> None:
        """Count one evaluation for a batch of `images`."""
        self.done += images
        self.progress(self.done, self.total, self.text)
