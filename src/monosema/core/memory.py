"""How much memory is and was in use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int | None:
    """Bytes in use at their peak: of a GPU what torch has allocated there, else what the process has had resident.

    Both since the process began. None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had: of a GPU as its driver says, else of RAM without swapping.

    No more than a limit of the container (cgroup version 2) or of the process (``ulimit -v``) leaves. None where the
    system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = (_available(Path("/proc/meminfo")), _below_limit(Path("/sys/fs/cgroup")), _address_space())
    found = [each for each in limits if each is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return None


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _below_limit(cgroup: Path) -> int | None:
    try:
        return max(1, int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _address_space() -> int | None:
    """Bytes of address space that the process may still take; None where it has no limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError, IndexError):  # Windows, macOS
        return None
    return None if limit == resource.RLIM_INFINITY else max(1, limit - pages * resource.getpagesize())


def readable_bytes(n_bytes: int) -> str:
    """``1.5 GiB``, ``320 MiB``."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{-(-n_bytes // 2**20)} MiB"
