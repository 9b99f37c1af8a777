"""Caches of activations: what is read is what was harvested, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from data_tiny import BOS, SITES, hooked_rows, random_split, tiny_llama
from torch import Tensor

import monosema as ms
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import ActivationCache, ActivationStream, write_cache
from monosema.data.cache.folders import open_folder
from monosema.data.cache.manifest import MANIFEST, chunk_name, read_manifest
from monosema.data.cache.sources import read_whole
from monosema.data.cache.write import cache_rows

BATCH = 10


def stream_of(model, names=SITES[0], **options):
    return ActivationStream(model, random_split(), names, batch_size=BATCH, chunk_contexts=5, seed=3, **options)


def make(model, folder: Path, names=SITES[0], *, stream=None, **options) -> ActivationCache:
    write_cache(stream or stream_of(model, names), folder, **{"dtype": "float32", "shard_bytes": 2000, **options})
    return ActivationCache(folder, BATCH)


def all_rows(cache: ActivationCache) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shards = [read_whole(cache.source, each) for each in cache.manifest.shards]
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(shard, name) for shard in shards]) for name in ("rows", "token_ids", "contexts", "positions")
    )


@pytest.mark.parametrize(
    ("dtype", "off"), [("float32", 2**-22), ("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 0.03)]
)
def test_every_row_is_the_activation_of_its_token(tmp_path, dtype, off):
    """In a float64 model the order of sums is far below what the cache's own type rounds.

    That is 2^-24 for float32. The model's norms are in float32 whatever the model, and may round 2^-24 otherwise.
    """
    model, split = tiny_llama(torch.float64), random_split()
    cache = make(model, tmp_path / "c", list(SITES), dtype=dtype)
    rows, token_ids, contexts, positions = all_rows(cache)
    caught = hooked_rows(model, split.contexts)
    expected = torch.cat([caught[name] for name in SITES], dim=2)[contexts.long(), positions.long()]
    assert float((rows.float() - expected).abs().max()) <= off * float(expected.abs().max())
    assert torch.equal(token_ids.long(), split.contexts[contexts.long(), positions.long()].long())
    assert len(rows) == int((split.contexts != BOS).sum()) == cache.manifest.n_rows
    assert len(set(zip(contexts.tolist(), positions.tolist(), strict=True))) == len(rows)
    assert not torch.equal(contexts, contexts.sort().values), "rows lie in the order of the text"


def test_each_epoch_serves_every_row_once_in_another_order(model, tmp_path):
    make(model, tmp_path / "c")
    cache = ActivationCache(tmp_path / "c", BATCH, epochs=2, mix_bytes=1)
    served = torch.cat(list(cache))
    per_epoch = len(served) // 2
    assert per_epoch * 2 + cache.n_dropped == 2 * cache.n_rows
    first, second = served[:per_epoch], served[per_epoch:]
    assert not torch.equal(first, second)
    stored = all_rows(cache)[0]
    found = (torch.cdist(first.double(), stored.double()) < 1e-6).any(1)
    assert bool(found.all())


@pytest.mark.parametrize("n_before", [0, 1, 7, 30])
def test_a_state_goes_on_to_the_bit(model, tmp_path, n_before):
    make(model, tmp_path / "c")
    whole = ActivationCache(tmp_path / "c", BATCH, epochs=2, mix_bytes=1)
    for _ in range(n_before):
        next(whole)
    state = json.loads(json.dumps(whole.state_dict()))
    again = ActivationCache(tmp_path / "c", BATCH, epochs=2, mix_bytes=1)
    again.load_state_dict(state)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)
    assert whole.n_dropped == again.n_dropped
    with pytest.raises(DataError, match="seed: 0 -> 1"):
        ActivationCache(tmp_path / "c", BATCH, epochs=2, mix_bytes=1, seed=1).load_state_dict(state)


def test_what_was_interrupted_goes_on_and_ends_equal(model, tmp_path, monkeypatch):
    whole = make(model, tmp_path / "whole")
    stream, made = stream_of(model), []
    make_chunk = stream.make_chunk

    def break_at_the_third(contexts, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(contexts.number)
        return make_chunk(contexts, *rest)

    monkeypatch.setattr(stream, "make_chunk", break_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(model, tmp_path / "c", stream=stream)
    with pytest.raises(FileError, match=r"not finished \(2 of"):
        ActivationCache(tmp_path / "c", BATCH)
    first = next((tmp_path / "c").glob("chunk-00000-*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])  # as a disk leaves it that lost its power
    again = make(model, tmp_path / "c")
    assert [each.sha256 for each in again.manifest.shards] == [each.sha256 for each in whole.manifest.shards]


def test_several_writers_make_what_one_makes(model, tmp_path):
    whole = make(model, tmp_path / "whole")
    for rank in (2, 0):
        assert (
            write_cache(stream_of(model), tmp_path / "c", dtype="float32", shard_bytes=2000, rank=rank, n_writers=3)
            is None
        )
    last = write_cache(stream_of(model), tmp_path / "c", dtype="float32", shard_bytes=2000, rank=1, n_writers=3)
    assert last is not None and last.fingerprint == whole.manifest.fingerprint


def test_a_run_trains_from_a_cache_as_from_the_array_of_its_rows(model, tmp_path):
    make(model, tmp_path / "c")
    config = ms.TrainingConfig(tokens=100, lr=0.01)
    cache = ActivationCache(tmp_path / "c", BATCH, validation_fraction=0.2)
    result = ms.train(ms.SAE(16, 32, activation=ms.TopK(k=4)), cache, config, progress=False)
    assert result.report is not None and result.coder.hook_name == SITES[0]
    assert result.coder.metadata["cache"]["fingerprint"] == cache.manifest.fingerprint


def test_sites_are_chosen_of_those_cached(model, tmp_path):
    both = make(model, tmp_path / "c", list(SITES))
    one = ActivationCache(tmp_path / "c", BATCH, hook_names=SITES[1])
    pair = ActivationCache(tmp_path / "c", BATCH, hook_names=SITES[1], targets=SITES[0])
    whole, second, swapped = next(both), next(one), next(pair)
    assert torch.equal(second, whole[:, 16:])
    assert torch.equal(swapped, torch.cat([whole[:, 16:], whole[:, :16]], dim=1))
    assert (pair.d_in, pair.d_out) == (16, 16)
    with pytest.raises(ConfigError, match=r"blocks.9.hook_resid_post.*it has blocks.0"):
        ActivationCache(tmp_path / "c", BATCH, hook_names="blocks.9.hook_resid_post")


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "bit flipped":
        content[len(content) * 2 // 3] ^= 1
        path.write_bytes(content)
    elif kind == "deleted":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    else:
        path.write_bytes(bytes(len(content)))


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "deleted", "emptied", "zeroed"])
def test_a_damaged_shard_is_named_and_not_trained_on(model, tmp_path, kind):
    cache = make(model, tmp_path / "c")
    victim = tmp_path / "c" / cache.manifest.shards[3].file
    damage(victim, kind)
    with pytest.raises(FileError, match=victim.name):
        list(cache)


def test_a_damaged_shard_that_is_deleted_is_written_again(model, tmp_path):
    cache = make(model, tmp_path / "c")
    victim = tmp_path / "c" / cache.manifest.shards[3].file
    before = victim.read_bytes()
    damage(victim, "bit flipped")
    with pytest.raises(FileError, match="delete it and run the command"):
        list(cache)
    victim.unlink()
    assert make(model, tmp_path / "c").manifest.fingerprint == cache.manifest.fingerprint
    assert victim.read_bytes() == before


@pytest.mark.parametrize("kind", ["truncated", "emptied", "zeroed", "deleted"])
def test_a_damaged_manifest_is_named(model, tmp_path, kind):
    make(model, tmp_path / "c")
    damage(tmp_path / "c" / MANIFEST, kind)
    with pytest.raises(FileError, match=r"manifest\.json|not finished"):
        ActivationCache(tmp_path / "c", BATCH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "outside its folder"),
        (lambda m: m["shards"][0].update(file="/etc/passwd"), "outside its folder"),
        (lambda m: m["shards"][0].update(n_rows="many"), "damaged shard record"),
        (lambda m: m["shards"][0].update(n_rows=True), "damaged shard record"),
        (lambda m: m["shards"].append(m["shards"][0]), "do not add up"),
        (lambda m: m.update(shards=[]), "no shards"),
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m.update(format="other"), "does not describe"),
        (lambda m: m.update(dtype="pickle"), "damaged"),
        (lambda m: m.update(reads=[["a", 10**30]]), "integer of more than 64 bits"),
        (lambda m: m.update(reads=[["a", -1]]), "damaged"),
        (lambda m: m.update(reads=7), "damaged"),
        (lambda m: m.update(n_contexts="all"), "damaged"),
        (lambda m: m.pop("stream"), "damaged"),
    ],
)
def test_a_hostile_manifest_is_refused(model, tmp_path, change, message):
    make(model, tmp_path / "c")
    path = tmp_path / "c" / MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(FileError, match=message):
        list(ActivationCache(tmp_path / "c", BATCH))


def test_a_cache_begun_otherwise_is_refused(model, tmp_path):
    make(model, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"other options .dtype"):
        make(model, tmp_path / "c", dtype="int8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        make(model, tmp_path / "other")


def test_what_the_disk_has_no_room_for_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(FileError, match="GiB free"):
        make(model, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rank": 2, "n_writers": 2}, ConfigError),
        ({"tokens": 0}, ConfigError),
        ({"tokens": 10**9}, DataError),
    ],
)
def test_bad_options_of_writing(model, tmp_path, options, error):
    with pytest.raises(error):
        make(model, tmp_path / "c", **options)


@pytest.mark.parametrize("tokens", [10, 31, 100])
def test_as_many_contexts_as_the_tokens_need(model, tmp_path, tokens):
    stream, told = stream_of(model), []
    some = make(model, tmp_path / "c", stream=stream, tokens=tokens, progress=told.append)
    read = stream.context_order(0)[: some.manifest.plan.n_contexts]
    rows = random_split().rows_in_contexts()[read]
    assert int(rows[:-1].sum()) < tokens <= int(rows.sum()) == some.manifest.n_rows == cache_rows(stream, tokens)
    assert sum(told) == some.manifest.n_rows, "the bar ends at its total, and not beyond"
    assert set(all_rows(some)[2].tolist()) == set(read.tolist())


def test_progress_counts_what_is_there_already(model, tmp_path):
    told: list[int] = []
    make(model, tmp_path / "c")
    make(model, tmp_path / "c", progress=told.append)
    assert sum(told) == cache_rows(stream_of(model), None)


def test_a_cache_of_other_tokens_in_the_same_folder_is_refused(model, tmp_path):
    make(model, tmp_path / "c", tokens=10)
    with pytest.raises(ConfigError, match=r"other options \(n_contexts: 2 -> 5"):
        make(model, tmp_path / "c", tokens=30)
    plan = json.loads((tmp_path / "c" / "plan.json").read_text())
    del plan["n_contexts"]  # as older versions wrote it
    (tmp_path / "c" / "plan.json").write_text(json.dumps(plan))
    assert make(model, tmp_path / "c", tokens=10).manifest.n_rows >= 10


def test_as_many_chunks_as_the_tokens_need(model, tmp_path):
    some = make(model, tmp_path / "c", tokens=100)
    assert 100 <= some.manifest.n_rows < make(model, tmp_path / "whole").manifest.n_rows
    assert not (tmp_path / "c" / chunk_name(some.manifest.plan.n_chunks)).exists()
    assert read_manifest(open_folder(tmp_path / "c")).fingerprint == some.manifest.fingerprint
