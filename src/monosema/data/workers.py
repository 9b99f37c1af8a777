"""Worker processes with a copy of the tokenizer each, for tokenizers that are pure Python."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import numpy as np

from monosema.core.errors import ConfigError, DataError

Encode = Callable[[Any, Sequence[str]], list[np.ndarray]]
"""Tokenizer and texts to the texts' tokens."""


class Workers:
    """Processes that tokenise batches of texts; they are ended when the ``with`` block is, however it ends.

    Each has a copy of ``tokenizer``. They are started, not forked: torch and the threads of fast tokenizers hold locks
    that a forked child would wait for without end. Raises ``ConfigError`` for a tokenizer that cannot be copied.
    """

    def __init__(self, tokenizer: Any, n_processes: int, encode: Encode) -> None:
        if n_processes < 1:
            raise ConfigError(f"n_processes must be at least 1, got {n_processes}")
        try:
            pickle.dumps(tokenizer)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"the tokenizer cannot be copied to other processes ({error}); use n_processes=1"
            ) from error
        self.n_processes = n_processes
        self._encode = encode
        self._pool = ProcessPoolExecutor(
            n_processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(tokenizer,)
        )

    def submit(self, texts: Sequence[str]) -> Future[list[np.ndarray]]:
        """Have ``texts`` tokenised by whoever is free."""
        try:
            return self._pool.submit(_encode, self._encode, texts)
        except BrokenProcessPool as error:
            raise _died() from error

    def result(self, future: Future[list[np.ndarray]]) -> list[np.ndarray]:
        """What ``submit`` was asked for; waits for it. ``DataError`` where a process died meanwhile."""
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise _died() from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _died() -> DataError:
    return DataError(
        "a tokenising process ended before its work did. Where memory is short, use fewer (n_processes); in a script, "
        "put what it does under `if __name__ == '__main__':`, because each process reads the script once"
    )


_tokenizer: Any = None


def _start(tokenizer: Any) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(encode: Encode, texts: Sequence[str]) -> list[np.ndarray]:
    return encode(_tokenizer, texts)
