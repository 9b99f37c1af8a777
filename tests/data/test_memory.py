"""Memory stays flat however long the stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serve_chunks import CHUNK_BYTES, N_CHUNKS

SCRIPT = Path(__file__).with_name("serve_chunks.py")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux' /proc")
@pytest.mark.parametrize(("kind", "chunks"), [("stream", 0.5), ("prefetch", 1.5), ("cache", 0.5), ("cache ahead", 1.5)])
def test_ten_chunks_take_no_more_memory_than_the_first(kind: str, chunks: float, tmp_path: Path):
    """Less than one chunk more than after the first, and less than two where the spare was not made yet by then."""
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, tmp_path / "cache"], stdout=subprocess.PIPE, check=True, timeout=240
    )
    peaks = json.loads(done.stdout)
    assert len(peaks) >= N_CHUNKS - 1, "the last rows of groups of a cache fill no batch"
    assert peaks[-1] / CHUNK_BYTES < chunks + 1.5, "a chunk, its spare, and a harvest's own memory"
    assert (peaks[-1] - peaks[0]) / CHUNK_BYTES < chunks, [round((each - peaks[0]) / CHUNK_BYTES, 2) for each in peaks]
