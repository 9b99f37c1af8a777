"""Standard output and error whose reader may go away: printing never ends a run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from monosema.core.printable import encodable, terminal_text


class Console(io.TextIOBase):
    """Writes text to ``stream``; what the system refuses is kept in ``error`` and not raised.

    A pipe whose reader has left, a terminal that was closed and a full disk are such errors. Later text is tried again.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self.stream, "errors", None)

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write ``text``; returns its length."""
        try:
            self.stream.write(text)
        except OSError as error:
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self.stream.flush()
        except OSError as error:
            self.error = self.error or error

    def forget(self) -> None:
        """Drop what could not be written, so that the end of the process does not try again and fail."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def consoles() -> Iterator[tuple[Console, Console]]:
    """Standard output and standard error as consoles while a command runs."""
    out, err = Console(sys.stdout), Console(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def print_error(line: str) -> None:
    """Write a line to standard error, where that can be done; what a terminal cannot show is shown by name."""
    print(encodable(terminal_text(line), sys.stderr.encoding), file=Console(sys.stderr), flush=True)
