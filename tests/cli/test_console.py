from __future__ import annotations

import signal

import pytest
from fewstep.cli import app, console
from fewstep.storage import version_of
from typer.testing import CliRunner


@pytest.fixture
def told(monkeypatch, capsys):
    """A function that says at a time how far the work is, and gives what was printed then."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    show = console.lines("work")

    def at(now, done, total):
        clock[0] = now
        show(done, total, "part")
        return capsys.readouterr().err.strip()

    return at


def test_a_line_now_and_then_says_how_long_it_takes(told):
    assert told(0, 0, 100) == ""
    assert told(29, 10, 100) == ""
    assert told(40, 20, 100) == "work: 20%, 160 s left, part"
    assert told(50, 30, 100) == ""
    assert told(80, 40, 100) == "work: 40%, 120 s left, part"


def test_the_time_left_is_that_of_the_part_at_hand(told):
    told(0, 0, 10)
    assert told(100, 10, 10) == "work: 100%, 0 s left, part"
    # The next part is ten times as fast.
    assert told(100, 0, 1000) == ""
    assert told(140, 400, 1000) == "work: 40%, 60 s left, part"
    # And one that begins anew with as many.
    assert told(200, 10, 1000) == ""
    assert told(240, 50, 1000) == "work: 5%, 950 s left, part"


def test_a_warning_is_one_line_and_comes_once(capsys):
    show = console.told_once()
    for text in ("few samples", "few samples", "JPEG"):
        show(UserWarning(text), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "warning: few samples\nwarning: JPEG\n"


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"fewstep {version_of('fewstep')}\n"


def test_a_part_of_another_size_is_another_part(told):
    told(0, 0, 10)
    assert told(10, 5, 10) == ""
    assert told(50, 6, 1000) == ""
    assert told(90, 46, 1000) == "work: 5%, 954 s left, part"


def test_a_request_to_end_is_afterwards_what_it_was_before():
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        assert CliRunner().invoke(app, ["solvers"]).exit_code == 0
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
