"""Progress: what is said, how often, and when nothing is."""

import logging
import threading

import pytest

from monosema.core import progress
from monosema.core.progress import Progress, doing, short_number


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(progress, "_interactive", lambda: False)
    return made


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="monosema")
    return caplog


def test_line(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    shown = Progress("train", 3_000_000)
    clock.now += 40
    shown.advance(1_200_000)
    shown.figures({"loss": 0.123456, "l0": 32.0})
    assert shown.line() == "train 1.2M/3.0M tok (40%), 30.0k tok/s, 60 s left, loss=0.1235, l0=32"


def test_work_done_before_does_not_count_as_speed(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    shown = Progress("train", 1000, unit="row", done=500)
    clock.now += 10
    shown.advance(100)
    assert shown.rate() == 10.0
    assert shown.line() == "train 600/1.0k row (60%), 10 row/s, 40 s left"


def said(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.split(" tok")[0] for record in log.records]


def test_lines_come_at_once_then_often_and_after_a_minute_at_the_interval(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    with Progress("train", 200, interval=30.0) as shown:
        assert said(log) == ["train: 200"]
        for _ in range(60):  # every second: at 3, 6, ... 60, and then at 90 and 120
            clock.now += 1
            shown.advance(1)
        assert said(log)[1:] == [f"train {n}/200" for n in range(3, 60, 3)]
        for _ in range(70):
            clock.now += 1
            shown.advance(1)
            shown.figures({"loss": 1.0})
        assert said(log)[20:] == ["train 87/200", "train 117/200"]
    assert said(log)[22:] == ["train 130/200"]
    assert {record.name for record in log.records} == {"monosema.progress"}


def test_an_interval_below_the_early_one_is_kept(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    shown = Progress("train", 100, interval=1.0)
    for _ in range(3):
        clock.now += 1
        shown.advance(1)
    assert said(log) == ["train: 100", "train 1/100", "train 2/100", "train 3/100"]


def test_the_first_line_says_what_was_done_before(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    Progress("train", 3_000_000, done=1_200_000)
    Progress("read", None)
    assert log.messages == ["train: 3.0M tok, 1.2M done", "read"]


def test_what_passes_leaves_no_last_line(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    with Progress("collecting activations", 100, passing=True) as shown:
        clock.now += 1
        shown.advance(100)
    assert log.messages == ["collecting activations: 100 tok"]


def test_work_of_unknown_size_is_said_at_once_and_then_how_long_it_has_taken(
    clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        clock.now += seconds
        return len(waited) == 27

    with doing("loading the model", enabled=True):
        assert log.messages == ["loading the model ..."], "before any of the work"
    log.clear()
    progress._repeat("loading the model", wait)
    assert waited == [2.5] * 24 + [30.0] * 3, "every 2.5 seconds in the first minute, then every 30"
    assert log.messages[:2] == ["loading the model ... 2 s so far", "loading the model ... 5 s so far"]
    assert log.messages[-1] == "loading the model ... 120 s so far"
    assert len(log.messages) == 26


def test_work_that_fails_ends_what_says_how_long_it_took(log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), doing("loading the model"):
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "monosema-progress"]


def test_nothing_when_disabled_or_quiet(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for enabled, level in ((False, logging.INFO), (True, logging.ERROR)):
        caplog.set_level(level, logger="monosema")
        with Progress("train", 100, interval=0.0, enabled=enabled) as shown:
            clock.now += 60
            shown.advance(50)
            shown.figures({"loss": 1.0})
        assert shown.done == 50  # it counts all the same
        with doing("loading", enabled=enabled):
            pass
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


def test_a_script_without_logging_still_sees_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, logger="monosema")
    shown = Progress("train", 100)
    clock.now += 40
    shown.advance(40)
    assert capsys.readouterr().err == "train: 100 tok\ntrain 40/100 tok (40%), 1 tok/s, 60 s left\n"


def test_nothing_is_said_at_the_end_of_no_work(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    with Progress("train", 100, done=100):
        pass
    assert log.records == []


def test_a_bar_on_a_terminal(
    clock: Clock, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_interactive", lambda: True)
    with Progress("train", 100) as shown:
        clock.now += 60
        shown.advance(40)
        shown.figures({"loss": 0.123456})
    assert log.records == []
    written = capsys.readouterr().err
    assert "train" in written
    assert "loss=0.1235" in written
    shown.close()  # twice is harmless


def test_edges(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    assert Progress("train", 0).line() == "train 0/0 tok (0%), 0 tok/s, inf s left"
    shown = Progress("train", 10)
    clock.now += 1
    shown.advance(12)  # the last batch may go beyond the total
    assert shown.line() == "train 12/10 tok (120%), 12 tok/s, 0 s left"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1.0k"), (1_234_567, "1.2M"), (2.5e9, "2.5G"), (-1500, "-1.5k")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
