"""One piece of writing at a time, on a thread, while steps go on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs jobs on a thread, one after the other; what goes wrong is raised by the next call in the caller's thread."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._done.set()
        self._error: BaseException | None = None

    def wait(self) -> None:
        """Return once nothing is under way. Raises what the last job raised, once."""
        self._done.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def start(self, job: Callable[[], object]) -> None:
        """``wait``, then run ``job`` beside the caller."""
        self.wait()
        self._done.clear()

        def run() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                self._error = error
            finally:
                self._done.set()

        # a daemon, so that a second Ctrl-C leaves at once; every orderly end waits
        threading.Thread(target=run, name="checkpoint writer", daemon=True).start()
