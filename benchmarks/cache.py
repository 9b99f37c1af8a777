"""Reading and writing caches of activations, beside the disk's own rate and sae-lens' cache runner, in one run.

    python tests/parity/environments.py --only saelens     # sae-lens' environment, once
    python benchmarks/cache.py [--gib 4] [--write-docs]

The rows are the same for all, and no model runs: ours are written by ``write_cache``, the peer's by its runner's own
loop, of whose store only the model is left out. Before a cold read every file's pages are dropped
(``posix_fadvise(DONTNEED)``) after they were flushed. The disk's rate is ``dd`` over the same files, a plain copy reads
them into memory from the page cache. Readings take turns with what they are compared with; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import ROOT, command, machine, markdown_table, refresh_block
from rows import activations

import monosema as ms
from monosema.data import RowLayout, TokenSplit, write_cache
from monosema.data.chunks import Chunk, ChunkContexts

HERE = Path(__file__).resolve().parent
PEER = ROOT / ".venv-saelens/bin/python"
CONTEXT_SIZE, SITE, N_MADE = 256, "rows", 2**15
GIB = 2**30


class RowsAsStream:
    """What ``write_cache`` asks of a stream, with rows that are there already in place of a model's."""

    def __init__(self, rows: torch.Tensor, n_rows: int):
        contexts = torch.arange(n_rows // CONTEXT_SIZE, dtype=torch.int32)[:, None].expand(-1, CONTEXT_SIZE)
        self.split = TokenSplit(contexts.contiguous(), frozenset(), "train")
        self.layout = RowLayout(((SITE, rows.shape[1]),), ((SITE, rows.shape[1]),))
        self.chunk_size = max(1, GIB // (4 * rows.shape[1] * CONTEXT_SIZE))
        self._rows = rows

    def record(self) -> dict[str, Any]:
        return {"tokens": {"context_size": CONTEXT_SIZE}}

    def context_order(self, epoch: int) -> torch.Tensor:
        return torch.arange(self.split.n_contexts)

    def make_chunk(self, contexts: ChunkContexts, progress: Callable[[int], None]) -> Chunk:
        n_rows = contexts.text.ids.numel()
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(contexts.number))
        repeats = -(-n_rows // len(self._rows))
        return Chunk(contexts, self._rows.repeat(repeats, 1)[:n_rows], order)


class Peer:
    """sae-lens in its own interpreter."""

    def __init__(self, n_threads: int):
        threads = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [PEER, HERE / "cache_saelens.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, **threads, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
        )
        self.version = self._answer()

    def ask(self, **request: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = self._answer()
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"sae-lens' process ended with {self._process.wait()}; see above")
        return json.loads(line)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def drop(files: Iterable[Path]) -> None:
    """Take the files out of the page cache."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk(files: Iterable[Path]) -> None:
    for path in files:
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)


def plain_copy(files: Iterable[Path], room: bytearray) -> None:
    """From the page cache into memory that is there already, as much as a file has bytes."""
    for path in files:
        with open(path, "rb", buffering=0) as file:
            n_read = 0
            while n := file.readinto(memoryview(room)[n_read:]):
                n_read += n


def serve(folder: Path) -> None:
    """Every row once, shuffled, in batches."""
    for _ in ms.ActivationCache(folder, 4096):
        pass


def written(folder: Path, rows: torch.Tensor, n_rows: int, dtype: Any) -> tuple[float, list[Path], float]:
    """Seconds, files, and size as a share of float32."""
    took = seconds(lambda: write_cache(RowsAsStream(rows, n_rows), folder, dtype=dtype))  # type: ignore[arg-type]
    files = sorted(folder.glob("*.safetensors"))
    return took, files, sum(path.stat().st_size for path in files) / (4 * n_rows * rows.shape[1])


def measure(options: argparse.Namespace, home: Path) -> list[list[str]]:
    rows = activations(N_MADE, options.d_in)
    np.save(home / "rows.npy", rows.numpy())
    n_rows = int(options.gib * GIB / (2 * options.d_in)) // CONTEXT_SIZE * CONTEXT_SIZE
    table: list[list[str]] = []

    def line(what: str, n_bytes: float, took: float, share: str = "", bar: str = "") -> None:
        table.append([what, f"{took:.2f}", f"{n_bytes / took / GIB:.2f}", f"{n_rows / took / 1e6:.2f}", share, bar])
        print("  ".join(table[-1]), file=sys.stderr, flush=True)

    peer = Peer(options.threads)
    asked = {"rows": str(home / "rows.npy"), "d_in": options.d_in, "n_rows": n_rows, "context_size": CONTEXT_SIZE}
    asked |= {"n_threads": options.threads, "folder": str(home / "peer"), "buffer_gb": min(2.0, options.gib / 2)}
    wrote = peer.ask(action="write", **asked)
    line(f"write, SAELens {peer.version}, float32", wrote["n_bytes"], wrote["seconds"])
    theirs = sorted((home / "peer").glob("*.arrow"))
    peer_read = []
    for _ in range(options.turns):
        drop(theirs)
        peer_read.append(peer.ask(action="read", **asked)["seconds"])
    line("cold read, SAELens, float32, in order", wrote["n_bytes"], statistics.median(peer_read))
    peer.close()
    shutil.rmtree(home / "peer")

    sizes = {}
    for dtype in ("float32", "int8", "bfloat16"):  # the last one stays
        took, files, sizes[dtype] = written(home / dtype, rows, n_rows, dtype)
        n_bytes = sum(path.stat().st_size for path in files)
        bar = "≥ 3" if dtype == "bfloat16" else ""
        line(f"write, monosema, {dtype}", n_bytes, took, f"{wrote['seconds'] / took:.2f} × SAELens", bar)
        if dtype != "bfloat16":
            shutil.rmtree(home / dtype)
    room = bytearray(max(path.stat().st_size for path in files))
    compared: list[tuple[str, str, str, bool, Callable[[], object]]] = [
        ("cold read, monosema, bfloat16, shuffled", "the disk's own (dd)", "≥ 0.80", True, lambda: disk(files)),
        ("warm read, monosema, bfloat16, shuffled", "a plain copy", "≥ 0.50", False, lambda: plain_copy(files, room)),
    ]
    for what, other, bar, is_cold, work in compared:
        ours: list[float] = []
        their: list[float] = []
        serve(home / "bfloat16")  # the page cache is filled, the code is warm
        for _ in range(options.turns):
            for times, each in ((their, work), (ours, lambda: serve(home / "bfloat16"))):
                if is_cold:
                    drop(files)
                times.append(seconds(each))
        took, reference = statistics.median(ours), statistics.median(their)
        line(other, n_bytes, reference)
        line(what, n_bytes, took, f"{reference / took:.2f} × {other}", bar)
        if is_cold:
            ratio = statistics.median(peer_read) / took
            table[-1][4] += f", {ratio:.2f} × SAELens"
    for dtype, bar in (("bfloat16", "≤ 0.51"), ("int8", "≤ 0.26")):
        table.append([f"size, {dtype}", "", "", "", f"{sizes[dtype]:.4f} × float32", bar])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time caches of activations, beside the disk and sae-lens.")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the bfloat16 cache")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where files are written; needs five times --gib")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    options = parser.parse_args()
    if not PEER.exists():
        raise SystemExit(f"no {PEER}; see the head of this file")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        table = measure(options, Path(home))
    header = ["what", "s", "GiB/s", "million rows/s", "ratio", "bar"]
    text = (
        f"{markdown_table(header, table)}\n\n{options.gib:g} GiB of bfloat16, {options.d_in} wide, files of 128 MiB; "
        f"median of {options.turns}; {machine(options.threads)}; torch {torch.__version__}.\nPrinted by `{command()}`."
    )
    print(text)
    if options.write_docs:
        refresh_block("cache", text)


if __name__ == "__main__":
    main()
