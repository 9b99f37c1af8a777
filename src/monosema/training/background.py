"""One piece of writing at a time, on a thread, while steps go on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs jobs on a thread, one after the other; what goes wrong is raised by the next call in the caller's thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def wait(self) -> None:
        """Return once nothing is under way and the thread has ended. Raises what the last job raised, once.

        A thread that still frees tensors while Python ends would abort the process.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def start(self, job: Callable[[], object]) -> None:
        """``wait``, then run ``job`` beside the caller."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                self._error = error

        # a daemon, so that a second Ctrl-C leaves at once; every orderly end waits
        self._thread = threading.Thread(target=run, name="checkpoint writer", daemon=True)
        self._thread.start()
