"""Jobs shared by a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def share(jobs: Iterable[Callable[[], object]], n_threads: int) -> None:
    """Run ``jobs``, begun in their order, in this thread and ``n_threads - 1`` beside it.

    The first error is raised here, once those under way have ended; no others are begun.
    """
    waiting, lock = iter(jobs), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                errors.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(n_threads - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
