"""Loggers whose messages any terminal can show: they quote names and texts of files."""

from __future__ import annotations

import logging

from monosema.core.printable import MOST_MESSAGE, terminal_text


def get_logger(name: str) -> logging.Logger:
    """The logger of this name, with control characters and what else cannot be seen in its messages shown by name."""
    logger = logging.getLogger(name)
    if _printable not in logger.filters:
        logger.addFilter(_printable)
    return logger


def _printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = terminal_text(record.getMessage(), MOST_MESSAGE), None
    return True
