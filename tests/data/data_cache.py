"""Caches made from numbers instead of a model: row ``i`` says ``i`` in its origin, and its values are its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monosema.data.cache import ActivationCache, CachePlan, Manifest, open_source
from monosema.data.cache.folders import open_folder
from monosema.data.cache.shards import ORIGIN, Shard
from monosema.data.cache.sources import read_whole
from monosema.data.cache.write import begin, finish, write_permuted

WIDTHS = (("blocks.0.hook_resid_post", 8), ("blocks.1.hook_mlp_out", 4))
STREAM = {
    "model": {"name": "org/base", "source": "org/base", "class": "Llama", "d_model": 8, "n_layers": 2},
    "tokens": {"source": "stdlib", "context_size": 10},
}


def values(n_rows: int, width: int = 12) -> Tensor:
    """``[n_rows, width]``, no row like another."""
    return torch.randn(n_rows, width, generator=torch.Generator().manual_seed(n_rows))


def number_cache(
    where: Any, n_rows: int = 300, dtype: str = "float32", *, shard_rows: int = 20, n_chunks: int = 3, **stream: Any
) -> Manifest:
    """A cache of ``values`` in ``n_chunks`` chunks."""
    folder = open_folder(where)
    plan = CachePlan((WIDTHS[0],), (WIDTHS[1],), dtype, n_chunks, shard_rows, {**STREAM, **stream})
    begin(folder, plan, 0)
    for number, part in enumerate(torch.arange(n_rows).tensor_split(n_chunks)):
        rows = Shard(values(n_rows)[part], part, part, part)
        generator = torch.Generator().manual_seed(number)
        write_permuted(folder, plan, number, rows, torch.randperm(len(part), generator=generator))
    manifest = finish(folder, plan)
    assert manifest is not None
    return manifest


def stored(where: Any) -> dict[str, Tensor]:
    """All rows and their origins, in the order of the token ids."""
    source = open_source(where)
    shards = [read_whole(source, record) for record in source.manifest.shards]
    whole = {name: torch.cat([getattr(shard, name) for shard in shards]) for name in ("rows", *ORIGIN)}
    order = whole["token_ids"].argsort()
    return {name: value[order] for name, value in whole.items()}


def served(where: Any, batch_size: int = 10, **options: Any) -> Tensor:
    """Everything that the cache serves."""
    return torch.cat(list(ActivationCache(where, batch_size, **options)))
