"""How a cache is read: ahead, in little memory, to the same bits; and not where it is another than was asked for."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import xxhash
from data_cache import WIDTHS, number_cache, served, stored, values

from monosema.core.errors import ConfigError, FileError
from monosema.data.cache import ActivationCache, CachePlan, rows
from monosema.data.cache.folders import open_folder
from monosema.data.cache.shards import Shard, ShardLayout, read_shard, read_shard_into, write_shard
from monosema.data.cache.write import begin, finish, write_permuted

MIB = 2**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "sites", [{}, {"hook_names": WIDTHS[1][0]}, {"hook_names": WIDTHS[1][0], "targets": WIDTHS[0][0]}]
)
def test_reading_ahead_changes_no_bit(tmp_path: Path, dtype: str, sites: dict[str, str]) -> None:
    number_cache(tmp_path / "c", 600, dtype)
    ahead, alone = (served(tmp_path / "c", mix_bytes=1, epochs=2, prefetch=each, **sites) for each in (True, False))
    assert len(ahead) == 1200 and torch.equal(ahead, alone)
    columns = {0: slice(0, 12), 1: slice(8, 12), 2: [8, 9, 10, 11, *range(8)]}[len(sites)]
    expected = stored(tmp_path / "c")["rows"][:, columns].to(ahead.dtype)
    assert torch.equal(ahead[:600].float().unique(dim=0), expected.float().unique(dim=0))


def test_the_next_group_is_read_in_a_thread_while_one_is_served(tmp_path: Path, monkeypatch) -> None:
    number_cache(tmp_path / "c", 600)
    readers: list[str] = []
    read = rows.read_group
    monkeypatch.setattr(
        rows, "read_group", lambda *given: readers.append(threading.current_thread().name) or read(*given)
    )
    cache = ActivationCache(tmp_path / "c", 10, mix_bytes=1)
    next(cache)
    until = time.monotonic() + 30
    while len(readers) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert readers == [threading.main_thread().name, "monosema-prefetch"]
    list(cache)
    assert len(readers) == len(cache._groups(0)) == 3 and set(readers[1:]) == {"monosema-prefetch"}


def test_nothing_is_read_that_the_run_does_not_want(tmp_path: Path, monkeypatch) -> None:
    number_cache(tmp_path / "c", 600)
    started = []
    read = rows.read_group
    monkeypatch.setattr(rows, "read_group", lambda *given: started.append(1) or read(*given))
    cache = ActivationCache(tmp_path / "c", 10, mix_bytes=1)
    cache.plan(100)  # of the first 160
    for _ in range(10):
        next(cache)
    del cache
    assert len(started) == 1


def test_an_error_of_the_thread_is_raised_where_the_group_is_wanted(tmp_path: Path) -> None:
    number_cache(tmp_path / "c", 600)
    cache = ActivationCache(tmp_path / "c", 10, mix_bytes=1)
    victim = tmp_path / "c" / cache._groups(0)[1][0].file
    victim.write_bytes(bytes(victim.stat().st_size))
    first = sum(shard.n_rows for shard in cache._groups(0)[0]) // 10
    for _ in range(first):
        next(cache)
    with pytest.raises(FileError, match=victim.name):
        next(cache)


def peak(work) -> int:
    """Bytes by which the process grew at most meanwhile."""

    def status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK), reason="asks /proc")
@pytest.mark.parametrize(("prefetch", "n_groups"), [(False, 1), (True, 2)])
def test_memory_is_that_of_a_group_and_a_spare(tmp_path: Path, prefetch: bool, n_groups: int) -> None:
    size, n_rows = 40 * MIB, 8 * 10240  # larger than what the allocator keeps; eight shards
    plan, folder = CachePlan((("a", 512),), (("a", 512),), "int8", 3, n_rows // 8, {}), open_folder(tmp_path / "c")
    begin(folder, plan, 0)
    numbers = torch.arange(n_rows)
    for chunk in range(3):
        write_permuted(folder, plan, chunk, Shard(torch.ones(n_rows, 512), numbers, numbers, numbers), numbers)
    finish(folder, plan)

    def read() -> None:
        cache = ActivationCache(tmp_path / "c", 512, mix_bytes=size, prefetch=prefetch)
        assert sum(len(batch) for batch in cache) == 3 * n_rows and len(cache._groups(0)) == 3

    read()  # what the first call makes once and for all
    grown = peak(read)
    assert (n_groups - 0.3) * size < grown < (n_groups + 0.4) * size, f"{grown / MIB:.1f} MiB"


def test_a_shard_of_many_pieces_is_read_as_written(tmp_path: Path) -> None:
    layout, folder = ShardLayout((("a", 333), ("b", 5)), "bfloat16"), open_folder(tmp_path)
    shard = Shard(values(7001, 338).bfloat16(), *(torch.arange(7001, dtype=torch.int32) + n for n in range(3)))
    record = write_shard(folder, "s.safetensors", layout, shard)
    assert record.n_bytes > 2 * 2**21
    again = read_shard(folder, layout, record)
    assert torch.equal(again.rows, shard.rows) and torch.equal(again.positions, shard.positions)
    path = tmp_path / "s.safetensors"
    content = bytearray(path.read_bytes())
    assert record.check == xxhash.xxh128_hexdigest(bytes(content))
    for at in (len(content) // 2, 2**21 + 5, -1):  # in a tensor, at a piece's edge, in one that is not asked for
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(FileError, match="checksum"):
            read_shard_into(folder, layout, record, {"a": torch.empty(7001, 333, dtype=torch.bfloat16)})


def test_another_model_or_type_is_refused(model, tmp_path: Path) -> None:
    number_cache(tmp_path / "other")
    number_cache(tmp_path / "own", model=model.record())
    number_cache(tmp_path / "several", model=None, models={"a": model.record(), "b": model.record()})
    number_cache(tmp_path / "none", model=None)
    assert ActivationCache(tmp_path / "own", 10, model=model, dtype="float32").n_rows == 300
    assert ActivationCache(tmp_path / "own", 10, model=model.name).n_rows == 300
    assert ActivationCache(tmp_path / "other", 10, model="org/base").n_rows == 300
    for name, given, message in (
        ("other", model, r"another model .*d_model: 8 -> 16"),
        ("other", "org/chat", r"made from 'org/base', not from 'org/chat'"),
        ("several", model, "another model .models: a, b -> one"),
        ("none", model, "does not record the model"),
    ):
        with pytest.raises(ConfigError, match=message):
            ActivationCache(tmp_path / name, 10, model=given)
    with pytest.raises(ConfigError, match="stored as float32, not int8"):
        ActivationCache(tmp_path / "own", 10, dtype="int8")
