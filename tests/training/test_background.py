"""One job at a time beside the caller; what it raises comes back to the caller."""

from __future__ import annotations

import functools
import threading
import time

import pytest

from monosema.core.errors import FileError
from monosema.training.background import BackgroundWriter


def test_a_second_job_waits_for_the_first() -> None:
    writer, may_end, calls = BackgroundWriter(), threading.Event(), []

    def first() -> None:
        may_end.wait(10)
        calls.append("first")

    writer.start(first)
    assert calls == []  # the caller goes on
    threading.Timer(0.05, may_end.set).start()
    writer.start(lambda: calls.append("second"))
    assert calls[0] == "first"
    writer.wait()
    assert calls == ["first", "second"]


@pytest.mark.parametrize("then", ["start", "wait"])
def test_an_error_is_raised_once_by_the_next_call(then: str) -> None:
    writer, calls = BackgroundWriter(), []

    def fail() -> None:
        raise FileError("full")

    writer.start(fail)
    with pytest.raises(FileError, match="full"):
        writer.start(lambda: calls.append(1)) if then == "start" else writer.wait()
    assert calls == []
    writer.wait()


def test_after_waiting_the_thread_has_ended_and_freed_what_the_job_held():
    class Slow:
        freed = False

        def __del__(self) -> None:
            time.sleep(0.2)
            Slow.freed = True

    writer = BackgroundWriter()
    writer.start(functools.partial(lambda held: time.sleep(0.1), Slow()))
    writer.wait()
    assert "checkpoint writer" not in [each.name for each in threading.enumerate()]
    assert Slow.freed
