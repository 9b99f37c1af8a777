"""What every benchmark says about where it ran, and how its table gets into the docs."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "benchmarks.md"


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def n_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(n_threads: int, device: str = "cpu") -> str:
    """Where something was timed."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    threads = "one thread" if n_threads == 1 else f"{n_threads} threads"
    return f"{threads} on {processor()} ({n_processors()} processors)"


def command() -> str:
    """The command line that prints this again, without the options that only say where the result goes."""
    kept: list[str] = []
    left_out = False
    for argument in sys.argv[1:]:
        if argument.startswith("--"):
            left_out = argument in ("--write-docs", "--json", "--results")
        if not left_out:
            kept.append(argument)
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def refresh_block(name: str, text: str, file: Path = DOCS) -> None:
    """Put ``text`` between the marks of block ``name`` in ``file``; the rest stays."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = file.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise SystemExit(f"{file} must hold {begin} and {end} once each, in this order")
    head, _, rest = content.partition(begin)
    tail = rest.partition(end)[2]
    file.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8")
