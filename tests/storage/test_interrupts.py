"""Requests to end wait for work that is not to be interrupted."""

from __future__ import annotations

import signal
import threading

import pytest
from fewstep.storage import unbroken


@pytest.fixture(autouse=True)
def as_python_does():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_request_waits_until_the_end():
    done = []

    def work():
        with unbroken():
            for step in (1, 2):
                signal.raise_signal(signal.SIGINT)
                done.append(step)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_errors_go_through_and_other_threads_are_left_alone():
    with pytest.raises(ValueError, match="mine"), unbroken():
        raise ValueError("mine")
    ran = []

    def work():
        with unbroken():
            ran.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
