import logging

import pytest

from monosema.core.logs import get_logger


def test_what_cannot_be_seen_is_named(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger("monosema.test_logs")
    assert get_logger("monosema.test_logs") is logger and len(logger.filters) == 1
    with caplog.at_level(logging.INFO, logger="monosema"):
        logger.info("%s of %d", "a\x1b[2J\r\u202eb", 3)
        logger.info("two\nlines of 100% text")
        logger.info("%s", "x" * 20_000)
    first, second, third = caplog.messages
    assert first == "a⟨U+001B⟩[2J⟨U+000D⟩⟨U+202E⟩b of 3"
    assert second == "two\nlines of 100% text"
    assert len(third) < 10_100 and "(10,000 characters left out)" in third
