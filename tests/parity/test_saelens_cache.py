"""Caches against sae-lens 6.54.12: it reads what we export, we read what its runner writes, value for value."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from peer import Peer
from safetensors.torch import load_file, save_file

from monosema.data import ActivationCache
from monosema.data.cache import CachePlan, export_arrow, open_source
from monosema.data.cache.folders import open_folder
from monosema.data.cache.shards import Shard
from monosema.data.cache.sources import read_whole
from monosema.data.cache.write import begin, finish, write_permuted

HOOK, D_IN, CONTEXT_SIZE = "blocks.1.hook_resid_post", 6, 8

datasets.disable_progress_bars()


def random_rows(n_rows: int) -> torch.Tensor:
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(n_rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_saelens_reads_our_export(saelens: Peer, tmp_path: Path, dtype: str):
    n_rows = 20 * CONTEXT_SIZE + 3
    folder = open_folder(tmp_path / "c")
    plan = CachePlan(((HOOK, D_IN),), ((HOOK, D_IN),), dtype, 1, 50, {})  # type: ignore[arg-type]
    begin(folder, plan, 0)
    ids = torch.arange(n_rows)
    write_permuted(folder, plan, 0, Shard(random_rows(n_rows), ids, ids, ids), ids)
    finish(folder, plan)
    source = open_source(tmp_path / "c")
    assert export_arrow(source, tmp_path / "arrow", context_size=CONTEXT_SIZE) == 3
    saelens.call(
        "read_cache",
        folder=str(tmp_path / "arrow"),
        out=str(tmp_path / "read"),
        hook_name=HOOK,
        d_in=D_IN,
        context_size=CONTEXT_SIZE,
        n_batches=5,
        batch=4,
    )
    found = load_file(tmp_path / "read")
    stored = torch.cat([read_whole(source, record).rows for record in source.manifest.shards])
    assert torch.equal(found["rows"], stored[: 20 * CONTEXT_SIZE].float())
    assert torch.equal(found["token_ids"].long(), ids[: 20 * CONTEXT_SIZE])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_we_read_what_its_runner_writes(saelens: Peer, tmp_path: Path, dtype: str):
    n_rows = 24 * CONTEXT_SIZE
    save_file({"rows": random_rows(n_rows).to(getattr(torch, dtype))}, tmp_path / "rows")
    saelens.call(
        "write_cache",
        folder=str(tmp_path / "arrow"),
        rows=str(tmp_path / "rows"),
        hook_name=HOOK,
        context_size=CONTEXT_SIZE,
        batch=4,
        dtype=dtype,
    )
    source = open_source(tmp_path / "arrow")
    shards = [read_whole(source, record) for record in source.manifest.shards]
    rows = random_rows(n_rows).to(getattr(torch, dtype))
    assert torch.equal(torch.cat([shard.rows for shard in shards]), rows)
    assert torch.cat([shard.token_ids for shard in shards]).tolist() == list(range(n_rows))
    cache = ActivationCache(tmp_path / "arrow", 16, hook_names=HOOK)
    assert torch.equal(torch.cat(list(cache)).unique(dim=0), rows.unique(dim=0))
