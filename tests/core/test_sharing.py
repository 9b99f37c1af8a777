"""Jobs are begun in order, by several threads; an error ends it."""

from __future__ import annotations

import threading

import pytest

from monosema.core.sharing import share


def test_every_job_is_done_once_and_two_at_a_time() -> None:
    meet, done = threading.Barrier(2, timeout=10), []
    share([meet.wait, meet.wait, *(lambda n=n: done.append(n) for n in range(5))], 2)
    assert sorted(done) == list(range(5))


def test_one_thread_does_them_in_order() -> None:
    done: list[int] = []
    share((lambda n=n: done.append(n) for n in range(5)), 1)
    assert done == list(range(5))


def test_the_first_error_is_raised_and_nothing_more_is_begun() -> None:
    done: list[int] = []

    def fail() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError, match="a"):
        share([fail, *(lambda n=n: done.append(n) for n in range(100))], 1)
    assert not done


def test_an_error_beside_the_caller_is_raised_by_it() -> None:
    begun = threading.Event()
    here = threading.get_ident()

    def fail_elsewhere() -> None:
        if threading.get_ident() == here:
            assert begun.wait(10)
            return
        begun.set()
        raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        share([fail_elsewhere] * 2, 2)
