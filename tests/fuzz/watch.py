"""What a reader does with a case: lines reached, time, memory, files and processes touched, and the verdict."""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import monosema
from monosema.core.errors import UserError

LIBRARY = str(Path(monosema.__file__).parent) + os.sep
SECONDS = 5.0
"""A reader that takes longer hangs: so much of the processor's time, or four times as much by the clock."""
_CLOCKS = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 4))
MEMORY = 2**30
"""Bytes a reader may take beyond what the process holds before."""


class Hang(BaseException):
    """A reader took longer than ``SECONDS``."""


class Lines:
    """Lines of the library that were reached, by ``sys.settrace``; functions of which none is left are not traced."""

    def __init__(self) -> None:
        self.new = 0
        self.seen: set[tuple[str, int]] = set()
        self._left: dict[CodeType, set[int]] = {}

    def run(self, function: Callable[[], None]) -> int:
        """Call ``function``; how many lines it was the first to reach."""
        before = len(self.seen)
        sys.settrace(self._call)
        try:
            function()
        finally:
            sys.settrace(None)
            self.new = len(self.seen) - before
        return self.new

    def share(self) -> tuple[int, int]:
        """Lines reached, and lines in all, of the functions that were entered at all."""
        left = {(code.co_filename, line) for code, lines in self._left.items() for line in lines} - self.seen
        return len(self.seen), len(self.seen) + len(left)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            left = set()
            if code.co_filename.startswith(LIBRARY) and code.co_name != "<module>":
                left = {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
            self._left[code] = left
        return self._line if left else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno in self._left[frame.f_code]:
            self._left[frame.f_code].discard(frame.f_lineno)
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


class Guard:
    """An audit hook that notes what no reader may do: write, run (a process, or code of a file that is read), connect
    or fetch (``traps.py``), or read outside its folder."""

    _FORBIDDEN = (
        "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
        "socket.getaddrinfo", "socket.gethostbyname", "fuzz.fetch", "pickle.find_class", "ctypes.dlopen", "os.chmod",
        "os.link", "os.symlink", "os.truncate", "marshal.loads",
    )  # fmt: skip
    _CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder: Path):
        self.folder = str(folder)
        self.may_write: frozenset[str] = frozenset()
        self.broken: list[str] = []
        self._is_on = False
        prefixes = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), LIBRARY, "/proc/", "/sys/"}
        self._known = (*(str(Path(each)) for each in prefixes if each), "/dev/null", "/dev/urandom")
        sys.addaudithook(self._hear)

    def __enter__(self) -> Guard:
        self.broken, self._is_on = [], True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_on:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):
                return
            writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._check(event, path, bool(writes) or (isinstance(mode, str) and set(mode) & set("wax+") != set()))
        elif event == "exec" and str(getattr(arguments[0], "co_filename", "")).startswith(self.folder):
            self.broken.append(f"exec of code in its folder: {arguments[0].co_filename}")
        elif event in self._CHANGES and not (event == "os.mkdir" and os.path.isdir(arguments[0])):
            self._check(event, arguments[0], True)
        elif event in self._FORBIDDEN:
            self.broken.append(f"{event}{arguments!r:.200}")

    def _check(self, event: str, path: Any, writes: bool) -> None:
        name = os.path.abspath(os.fsdecode(path))
        if writes and not any(allowed in name for allowed in self.may_write):
            self.broken.append(f"{event} for writing: {name}")
        if not name.startswith(self.folder) and (writes or not name.startswith(self._known)):
            self.broken.append(f"{event} outside its folder: {name}")


def limit_memory() -> None:
    """No more than ``MEMORY`` beyond what is held now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def verdict(
    read: Callable[[Path], None], folder: Path, names: list[str], lines: Lines | None, guard: Guard
) -> tuple[str | None, bool]:
    """What was wrong, None where ``read`` returned or refused as it should; and whether it refused."""

    def alarm(*_: object) -> None:
        raise Hang

    for clock, number, seconds in _CLOCKS:
        signal.signal(number, alarm)
        signal.setitimer(clock, seconds * SECONDS)
    found, refused = None, False
    try:
        with guard:
            if lines is None:
                read(folder)
            else:
                lines.run(lambda: read(folder))
    except UserError as error:
        refused = True
        if not any(name in str(error) for name in [str(folder), *names]):
            found = f"the message names no file: {_place(error)}: {type(error).__name__}: {error!s:.150}"
        elif len(str(error)) > 20_000:
            found = f"a message of {len(str(error))} characters: {_place(error)}"
    except Hang as error:
        found = f"longer than {SECONDS} s: {_place(error)}"
    except BaseException as error:  # noqa: BLE001 (that is what is looked for)
        found = f"{type(error).__name__} at {_place(error)}: {error!s:.150}"
    finally:
        for clock, _, _ in _CLOCKS:
            signal.setitimer(clock, 0)
    return found or (guard.broken[0] if guard.broken else None), refused


def key_of(found: str) -> str:
    """A verdict without what differs from case to case."""
    return ": ".join(found.split(": ")[:2])[:120] if "names no file" in found else found.split(": ")[0][:120]


def _place(error: BaseException) -> str:
    """The deepest line of the library in the error's way."""
    ours = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(LIBRARY)]
    return f"{ours[-1].filename.removeprefix(LIBRARY)} {ours[-1].name} {ours[-1].line}"[:100] if ours else "?"
