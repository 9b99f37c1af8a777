"""sae-lens' layout, against the ``datasets`` library; against sae-lens itself in ``tests/parity``."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from data_cache import STREAM, WIDTHS, number_cache, served

from monosema.core.errors import ConfigError, FileError
from monosema.data.cache import ActivationCache, arrow, export_arrow, open_source
from monosema.data.cache.sources import read_whole

datasets.disable_progress_bars()


def saved(
    folder: Path, n_contexts: int = 6, dtype: str = "float32", *, with_tokens: bool = True, **columns
) -> np.ndarray:
    """A dataset as sae-lens saves it; its activations ``[n_contexts, 5, 3]``."""
    x = np.random.default_rng(0).normal(size=(n_contexts, 5, 3)).astype(dtype)
    data = {"hook": x, **columns}
    features = {name: datasets.Array2D(shape=each.shape[1:], dtype=str(each.dtype)) for name, each in data.items()}
    if with_tokens:
        data["token_ids"] = np.arange(n_contexts * 5, dtype=np.int32).reshape(n_contexts, 5)
        features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=5)
    datasets.Dataset.from_dict(data, features=datasets.Features(features)).save_to_disk(str(folder))
    return x


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_dataset_is_read_as_a_cache(tmp_path: Path, monkeypatch, dtype: str) -> None:
    monkeypatch.setattr(arrow, "SHARD_BYTES", 5 * 24 * 2)
    x = saved(tmp_path / "a", dtype=dtype)
    source = open_source(tmp_path / "a")
    parts = [read_whole(source, record) for record in source.manifest.shards]
    assert len(parts) > 1 and source.manifest.plan.dtype == dtype
    assert np.array_equal(torch.cat([part.rows for part in parts]).numpy(), x.reshape(-1, 3))
    assert torch.cat([part.token_ids for part in parts]).tolist() == list(range(30))
    assert torch.cat([part.contexts for part in parts]).tolist() == np.arange(6).repeat(5).tolist()
    assert torch.cat([part.positions for part in parts]).tolist() == [0, 1, 2, 3, 4] * 6
    once, again = (served(tmp_path / "a", 3, epochs=2) for _ in range(2))
    assert torch.equal(once, again) and not np.array_equal(once[:30].numpy(), x.reshape(-1, 3))
    assert torch.equal(once[:30].unique(dim=0), torch.from_numpy(x.reshape(-1, 3)).unique(dim=0))


def test_content_decides_the_fingerprint_and_the_state(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b", 7)
    one, other = (ActivationCache(tmp_path / name, 3) for name in "ab")
    assert one.manifest.fingerprint == ActivationCache(tmp_path / "a", 3).manifest.fingerprint
    assert one.manifest.fingerprint != other.manifest.fingerprint
    with pytest.raises(ConfigError, match="does not record the model"):
        ActivationCache(tmp_path / "a", 3, model="gpt2")


def test_columns_that_are_no_activations(tmp_path: Path) -> None:
    saved(tmp_path / "one", with_tokens=False)
    assert set(
        read_whole(open_source(tmp_path / "one"), open_source(tmp_path / "one").manifest.shards[0]).token_ids.tolist()
    ) == {-1}
    saved(tmp_path / "mixed", other=np.zeros((6, 5, 2), np.float16))
    with pytest.raises(FileError, match=r"one length and one type.*other float16 \[5, 2\]"):
        open_source(tmp_path / "mixed")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(FileError, match="no column of activations; its columns are text"):
        open_source(tmp_path / "text")


@pytest.mark.parametrize("kind", ["truncated", "emptied", "deleted"])
def test_a_damaged_dataset_is_named(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "a", 4000)
    victim = next((tmp_path / "a").glob("*.arrow"))
    if kind == "deleted":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: 100_000 if kind == "truncated" else 0])
    with pytest.raises(FileError, match=str(tmp_path / "a")):
        list(ActivationCache(tmp_path / "a", 3))


@pytest.mark.parametrize(("dtype", "kept"), [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")])
def test_an_export_is_the_rows_in_their_order(tmp_path: Path, monkeypatch, dtype: str, kept: str) -> None:
    number_cache(tmp_path / "c", dtype=dtype)
    monkeypatch.setattr(arrow, "FILE_BYTES", 7 * 12 * 4 * 9)
    source = open_source(tmp_path / "c")
    assert export_arrow(source, tmp_path / "a", context_size=7) == 300 % 7
    assert len(list((tmp_path / "a").glob("*.arrow"))) > 1
    shards = [read_whole(source, record) for record in source.manifest.shards]
    rows, ids = (torch.cat([getattr(shard, name) for shard in shards])[:294] for name in ("rows", "token_ids"))
    found = datasets.load_from_disk(str(tmp_path / "a")).with_format("numpy")
    assert found.column_names == [*(name for name, _ in WIDTHS), "token_ids"] and len(found) == 42
    for (name, width), part in zip(WIDTHS, rows.split([8, 4], dim=1), strict=True):
        assert found.features[name].shape == (7, width) and found.features[name].dtype == kept
        assert np.array_equal(np.stack(list(found[name])).reshape(-1, width), part.to(getattr(torch, kept)).numpy())
    assert np.array_equal(np.stack(list(found["token_ids"])).reshape(-1), ids.numpy())
    again = ActivationCache(tmp_path / "a", 10, hook_names=WIDTHS[1][0], model=STREAM["model"]["name"])
    assert sum(len(batch) for batch in again) == 290


def test_exports_that_cannot_be(tmp_path: Path) -> None:
    number_cache(tmp_path / "c")
    source = open_source(tmp_path / "c")
    assert export_arrow(source, tmp_path / "a") == 0  # contexts of 10, as the text's
    with pytest.raises(ConfigError, match="is there already"):
        export_arrow(source, tmp_path / "a")
    with pytest.raises(ConfigError, match="context_size"):
        export_arrow(source, tmp_path / "b", context_size=301)
    assert not (tmp_path / "b").exists()
