"""Progress: what is said, how often, and when nothing is."""

import logging

import pytest

from monosema.core import progress
from monosema.core.progress import Progress, short_number


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


def test_interval_is_kept(clock: Clock, log: pytest.LogCaptureFixture) -> None:
    with Progress("train", 100, interval=30.0) as shown:
        for _ in range(10):  # every 8 seconds: at 32, 64 and the last at 80
            clock.now += 8
            shown.advance(10)
            shown.figures({"loss": 1.0})
        said = [record.message.split(" tok")[0] for record in log.records]
        assert said == ["train 40/100", "train 80/100"]
    assert [record.message.split(" tok")[0] for record in log.records] == [*said, "train 100/100"]
    assert {record.name for record in log.records} == {"monosema.progress"}


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
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


def test_a_script_without_logging_still_sees_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, logger="monosema")
    shown = Progress("train", 100)
    clock.now += 40
    shown.advance(40)
    assert capsys.readouterr().err == "train 40/100 tok (40%), 1 tok/s, 60 s left\n"


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
