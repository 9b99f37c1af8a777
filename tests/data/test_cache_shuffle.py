"""A shuffled cache holds the same rows in another order, however often it was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_cache import number_cache, stored

from monosema.core.errors import ConfigError
from monosema.data.cache import open_source, shuffle, shuffle_cache, write
from monosema.data.cache.sources import read_whole

N_ROWS = 600
LITTLE = {"memory_bytes": 6000, "shard_bytes": 1000}


def order_of(where: Path) -> torch.Tensor:
    source = open_source(where)
    return torch.cat([read_whole(source, record).token_ids for record in source.manifest.shards])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_rows_in_another_order(tmp_path: Path, dtype: str) -> None:
    number_cache(tmp_path / "c", N_ROWS, dtype)
    told: list[int] = []
    manifest = shuffle_cache(tmp_path / "c", tmp_path / "s", seed=1, progress=told.append, **LITTLE)
    assert manifest.plan.n_chunks > 4 and sum(told) == 2 * N_ROWS
    before, after = stored(tmp_path / "c"), stored(tmp_path / "s")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not list((tmp_path / "s").glob("dealt-*"))
    assert manifest.plan.stream["shuffle"] == {"seed": 1, "of": open_source(tmp_path / "c").manifest.fingerprint}
    places = order_of(tmp_path / "s").double()
    assert abs(float(torch.corrcoef(torch.stack([places, torch.arange(N_ROWS).double()]))[0, 1])) < 0.15
    shuffle_cache(tmp_path / "c", tmp_path / "other", seed=2, **LITTLE)
    assert not torch.equal(order_of(tmp_path / "s"), order_of(tmp_path / "other"))


def test_every_first_shard_draws_on_the_whole_cache(tmp_path: Path) -> None:
    number_cache(tmp_path / "c", N_ROWS)
    shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE)
    first = order_of(tmp_path / "s")[: N_ROWS // 6]
    assert min(torch.histc(first.float(), 6, 0, N_ROWS).tolist()) > 5


def test_int8_moves_by_half_a_step(tmp_path: Path) -> None:
    number_cache(tmp_path / "c", N_ROWS, "int8")
    shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE)
    before, after = stored(tmp_path / "c")["rows"], stored(tmp_path / "s")["rows"]
    step = before.abs().amax(0) / 127
    assert 0 < float(((before - after).abs() / step).max()) <= 0.5 + 1e-3


@pytest.mark.parametrize("n_written", [0, 3, 20, 40, 60])
def test_what_was_interrupted_goes_on_and_ends_equal(tmp_path: Path, monkeypatch, n_written: int) -> None:
    number_cache(tmp_path / "c", N_ROWS)
    whole = shuffle_cache(tmp_path / "c", tmp_path / "whole", **LITTLE)
    written = []
    real = write.write_shard

    def stop(*given):
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(given[1])
        return real(*given)

    for module in (shuffle, write):
        monkeypatch.setattr(module, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE)
    monkeypatch.undo()
    assert shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE).fingerprint == whole.fingerprint
    assert {path.name for path in (tmp_path / "s").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_again_changes_nothing_and_other_options_are_refused(tmp_path: Path) -> None:
    number_cache(tmp_path / "c", N_ROWS)
    first = shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert shuffle_cache(tmp_path / "c", tmp_path / "s", **LITTLE).fingerprint == first.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == times
    with pytest.raises(ConfigError, match=r"other options .stream\.shuffle\.seed: 0 -> 5"):
        shuffle_cache(tmp_path / "c", tmp_path / "s", seed=5, **LITTLE)
    with pytest.raises(ConfigError, match="other options"):
        shuffle_cache(tmp_path / "c", tmp_path / "c", **LITTLE)
    with pytest.raises(ConfigError, match="at least 1"):
        shuffle_cache(tmp_path / "c", tmp_path / "t", memory_bytes=0)
