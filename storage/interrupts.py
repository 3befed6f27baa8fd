"""Work that is not to be interrupted in the middle."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASKING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def unbroken() -> Iterator[None]:
    """Let a request to end wait until this is over: for moments, where halves would be no use.

    In the main thread, which is where such requests arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, Any]] = []
    before = {each: signal.getsignal(each) for each in ASKING}
    for each in ASKING:
        signal.signal(each, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number, _ in held[:1]:
            signal.raise_signal(number)
