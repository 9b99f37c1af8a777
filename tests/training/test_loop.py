"""The loop: what is called when, what stops it, and that logging changes no weight."""

from __future__ import annotations

import errno
import math
import signal
import threading

import pytest
import torch
from training_tiny import batches, differences, make_trainer, snapshot

from monosema.core.errors import DataError
from monosema.training import Callback, NonFiniteStepError, RunInterrupted, fit


class Diary(Callback):
    """Notes every call as (what, step); ``at`` maps steps to something done in ``on_step``."""

    def __init__(self, at=None, name=""):
        self.calls, self.at, self.name = [], at or {}, name

    def on_step(self, trainer):
        self.calls.append((self.name + "step", trainer.step_number))
        self.at.get(trainer.step_number, lambda: None)()

    def on_log(self, trainer, metrics):
        assert metrics["tokens"] == trainer.tokens_seen
        self.calls.append((self.name + "log", trainer.step_number))

    def on_checkpoint(self, trainer):
        self.calls.append((self.name + "checkpoint", trainer.step_number))

    def steps(self, what):
        return [step for name, step in self.calls if name == what]


def test_callbacks_come_in_order_at_their_steps():
    trainer, diary = make_trainer(n_steps=7, log_every=2, checkpoint_every=3), Diary()
    fit(trainer, iter(batches(7)), [diary])
    assert diary.steps("step") == [1, 2, 3, 4, 5, 6, 7]
    assert diary.steps("log") == [2, 4, 6, 7]
    assert diary.steps("checkpoint") == [3, 6, 7]
    assert [name for name, step in diary.calls if step == 6] == ["step", "log", "checkpoint"]


def test_each_moment_reaches_the_callbacks_in_the_order_given():
    calls = []
    first, second = Diary(name="a "), Diary(name="b ")
    first.calls = second.calls = calls
    fit(make_trainer(n_steps=1), iter(batches(1)), [first, second])
    assert [name for name, _ in calls] == ["a step", "b step", "a log", "b log", "a checkpoint", "b checkpoint"]


@pytest.mark.parametrize(("every", "expected"), [(None, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21]), (0, [21])])
def test_checkpoints_come_ten_times_by_default_and_at_zero_only_at_the_end(every, expected):
    trainer, diary = make_trainer(n_steps=21, checkpoint_every=every), Diary()
    fit(trainer, iter(batches(21)), [diary])
    assert diary.steps("checkpoint") == expected


def test_how_often_is_logged_changes_no_bit():
    often, seldom = (make_trainer("BatchTopK", n_steps=9, log_every=n, checkpoint_every=n) for n in (1, 9))
    for trainer in (often, seldom):
        fit(trainer, iter(batches(9)), [Diary()])
    assert differences(snapshot(often), snapshot(seldom)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_step_with_a_checkpoint_and_the_run_goes_on_later(number):
    before = signal.getsignal(number)
    trainer = make_trainer(n_steps=8, log_every=100, checkpoint_every=100)
    diary = Diary({3: lambda: signal.raise_signal(number)})
    source = iter(batches(8))
    with pytest.raises(RunInterrupted, match=rf"stopped by {number.name} after step 3 of 8; the same call resumes"):
        fit(trainer, source, [diary])
    assert diary.calls == [("step", 1), ("step", 2), ("step", 3), ("checkpoint", 3)]
    assert signal.getsignal(number) is before
    fit(trainer, source, [diary])
    whole = make_trainer(n_steps=8)
    fit(whole, iter(batches(8)), [])
    assert differences(snapshot(trainer), snapshot(whole)) == []


def test_a_checkpoint_may_be_asked_for_and_the_end_is_told():
    class Asks(Diary):
        def is_checkpoint_due(self, trainer):
            return trainer.step_number == 2

        def on_end(self, trainer):
            self.calls.append(("end", trainer.step_number))

    asks, other = Asks(), Diary()
    fit(make_trainer(n_steps=5, checkpoint_every=4), iter(batches(5)), [other, asks])
    assert asks.steps("checkpoint") == other.steps("checkpoint") == [2, 4, 5]
    assert asks.calls[-1] == ("end", 5)
    asks = Asks({3: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(RunInterrupted):
        fit(make_trainer(n_steps=5, checkpoint_every=0), iter(batches(5)), [asks])
    assert asks.calls[-2:] == [("checkpoint", 3), ("end", 3)]
    asks = Asks({3: lambda: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        fit(make_trainer(n_steps=5), iter(batches(5)), [asks])
    assert asks.steps("end") == []


def test_a_limit_of_hours_stops_with_a_checkpoint_as_a_signal_does():
    trainer, diary = make_trainer(n_steps=8, checkpoint_every=100, max_hours=1e-12), Diary()
    source = iter(batches(8))
    with pytest.raises(RunInterrupted, match="stopped by max_hours after step 1 of 8"):
        fit(trainer, source, [diary])
    assert diary.calls == [("step", 1), ("checkpoint", 1)]


def test_what_is_kept_for_good_is_written_when_it_is_due():
    trainer, diary = make_trainer(n_steps=9, checkpoint_every=0, keep_every=4), Diary()
    fit(trainer, iter(batches(9)), [diary])
    assert diary.steps("checkpoint") == [4, 8, 9]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(second):
    class SecondError(Exception):
        pass

    def act(number, frame):
        raise SecondError

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(second)

    before = {number: signal.signal(number, act) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        trainer, diary = make_trainer(n_steps=8), Diary({2: twice})
        with pytest.raises(SecondError):
            fit(trainer, iter(batches(8)), [diary])
        assert diary.calls[-1] == ("step", 2)
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is act
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_closed_terminal_may_hang_up_twice():
    def twice():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    trainer, diary = make_trainer(n_steps=8, checkpoint_every=0), Diary({2: twice})
    with pytest.raises(RunInterrupted, match="stopped by SIGHUP after step 2 of 8"):
        fit(trainer, iter(batches(8)), [diary])
    assert diary.calls[-1] == ("checkpoint", 2)
    assert signal.getsignal(signal.SIGHUP) is before


def test_a_process_that_ignores_hangups_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        trainer = make_trainer(n_steps=3)
        fit(trainer, iter(batches(3)), [Diary({1: lambda: signal.raise_signal(signal.SIGHUP)})])
        assert trainer.step_number == 3
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_batch_acts_at_once_and_says_so(number):
    def source():
        signal.raise_signal(number)
        yield from batches(8)

    diary = Diary()
    with pytest.raises(RunInterrupted, match=f"stopped by {number.name} before the first step of this call"):
        fit(make_trainer(n_steps=8), source(), [diary])
    assert diary.calls == []


def test_a_signal_says_at_once_that_it_was_heard(caplog):
    diary = Diary({2: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(RunInterrupted):
        fit(make_trainer(n_steps=8), iter(batches(8)), [diary])
    assert "SIGINT: the step under way is finished and a checkpoint written" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_rows_that_do_not_fit_into_memory_leave_a_checkpoint_of_the_step_before(error):
    def source():
        yield from batches(3)
        raise error

    trainer, diary = make_trainer(n_steps=8, checkpoint_every=0), Diary()
    with pytest.raises(type(error)):
        fit(trainer, source(), [diary])
    assert diary.steps("checkpoint") == [3]


def test_other_errors_of_the_rows_write_no_checkpoint():
    def source():
        yield from batches(3)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    diary = Diary()
    with pytest.raises(RuntimeError, match="multiplied"):
        fit(make_trainer(n_steps=8, checkpoint_every=0), source(), [diary])
    assert diary.steps("checkpoint") == []


def test_a_signal_at_the_last_step_lets_the_run_end():
    trainer, diary = make_trainer(n_steps=2), Diary({2: lambda: signal.raise_signal(signal.SIGTERM)})
    fit(trainer, iter(batches(2)), [diary])
    assert diary.steps("checkpoint")[-1] == 2


def test_a_run_in_another_thread_leaves_the_signals_alone():
    before, failures = signal.getsignal(signal.SIGINT), []

    def run():
        try:
            fit(make_trainer(n_steps=2), iter(batches(2)), [])
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failures == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_source_that_ends_early_says_so():
    trainer = make_trainer(n_steps=5)
    with pytest.raises(DataError, match="ended after step 3 of 5; lower tokens, or give the source more epochs"):
        fit(trainer, iter(batches(3)), [])
    assert trainer.step_number == 3


def test_a_bad_step_stops_the_run_at_the_next_log_before_any_checkpoint():
    trainer, diary = make_trainer(n_steps=20, log_every=6, checkpoint_every=6), Diary()
    data = batches(20)
    data[7][0, 0] = math.inf
    with pytest.raises(NonFiniteStepError, match="step 7 was not finite"):
        fit(trainer, iter(data), [diary])
    assert diary.steps("step")[-1] == 12
    assert (diary.steps("log"), diary.steps("checkpoint")) == ([6], [6])
