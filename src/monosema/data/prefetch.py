"""Making the next chunk in a thread of its own while the one before it is served."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Generic, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor

from monosema.core.compiling import CompileMode
from monosema.core.errors import ConfigError
from monosema.core.logs import get_logger
from monosema.models import LanguageModel

logger = get_logger("monosema.data.stream")


@runtime_checkable
class HoldsRows(Protocol):
    """A chunk of rows that is ready to be served."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""


C = TypeVar("C", bound=HoldsRows)
Make = Callable[[Callable[[], None]], C]
"""Makes a chunk, and calls what it is given every now and then (before every forward pass)."""


def check_prefetch(prefetch: bool | None, compile: CompileMode | None) -> None:
    """Raise ``ConfigError`` for compiled blocks in a thread: torch may compile in one thread at a time only."""
    if prefetch and compile is not None:
        raise ConfigError(
            f"prefetch=True and compile={compile!r} of a stream exclude each other; leave out one of them"
        )


def prefetches(prefetch: bool | None, compile: CompileMode | None, devices: Sequence[torch.device]) -> bool:
    """Whether the next chunk is made while one is served: as asked for, or where all models are on GPUs and eager."""
    return prefetch if prefetch is not None else compile is None and all(each.type == "cuda" for each in devices)


@final
class Prefetch(Generic[C]):
    """At most one chunk in the making, in a thread; rows on GPUs are made on CUDA streams of its own.

    Meanwhile whoever else is about to run or hook one of ``models`` waits.

    Args:
        models: the models that are run.
        devices: theirs, and the one rows are kept on.
    """

    def __init__(self, models: Sequence[LanguageModel], devices: Iterable[torch.device]) -> None:
        self._unwanted = threading.Event()
        self._coming: Future[C | None] | None = None
        self._has_room = True
        self._models = tuple(models)
        self._streams = [torch.cuda.Stream(each) for each in dict.fromkeys(devices) if each.type == "cuda"]

    def __del__(self) -> None:
        self._unwanted.set()  # the thread knows nothing of this object, and ends before its next forward pass

    @property
    def is_idle(self) -> bool:
        """Whether a chunk may be started."""
        return self._coming is None and self._has_room

    def start(self, make: Make[C]) -> None:
        """Begin to make a chunk, on GPUs after everything that the caller has queued so far."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self._unwanted, begun = threading.Event(), threading.Event()
        coming: Future[C | None] = Future()
        arguments = (make, self._models, self._streams, self._unwanted, begun, coming)
        threading.Thread(target=_work, args=arguments, name="monosema-prefetch").start()
        self._coming = coming
        begun.wait()

    def take(self) -> C | None:
        """The chunk, once it is done; None where there is none or memory did not suffice for it.

        Raises whatever making it raised.
        """
        if self._coming is None:
            return None
        wait([self._coming])  # interrupted here, it is still to be taken
        try:
            chunk = self._coming.result()
        finally:
            self._coming = None
        if chunk is None:
            self._has_room = False
            return None
        for tensor in chunk.tensors:
            if tensor.is_cuda:  # its memory is the other stream's: not to be used again while the caller's needs it
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return chunk

    def drop(self) -> None:
        """Give up the chunk in the making; waits until it next looks whether it is wanted."""
        self._unwanted.set()
        if self._coming is not None:
            wait([self._coming])
            self._coming = None


def _work(
    make: Make[C],
    models: Sequence[LanguageModel],
    streams: Sequence[torch.cuda.Stream],
    unwanted: threading.Event,
    begun: threading.Event,
    coming: Future[C | None],
) -> None:
    def go_on() -> None:
        if unwanted.is_set() or not threading.main_thread().is_alive():  # Python waits for this thread when it exits
            raise CancelledError

    try:
        with contextlib.ExitStack() as stack:
            for model in models:
                stack.enter_context(model.reserved())
            begun.set()
            stack.enter_context(_on(streams))
            chunk = make(go_on)
    except CancelledError:
        coming.set_result(None)
    except torch.OutOfMemoryError:
        logger.warning("no memory for a second chunk of activations: from here on none is collected ahead")
        coming.set_result(None)
    except BaseException as error:  # noqa: BLE001  # raised where the chunk is taken
        coming.set_exception(error)
    else:
        coming.set_result(chunk)
    finally:
        begun.set()
        del coming  # else a traceback through here would keep its own error, and the rows made so far, alive


@contextlib.contextmanager
def _on(streams: Sequence[torch.cuda.Stream]) -> Iterator[None]:
    """Inside, this thread's work goes to ``streams``; it is complete when the context ends."""
    with contextlib.ExitStack() as stack:
        for stream in streams:
            stream.synchronize()  # what the caller gave back before is then free, and a third chunk's memory not needed
            stack.enter_context(torch.cuda.stream(stream))
        try:
            yield
        finally:
            for stream in streams:
                stream.synchronize()
