"""Files made to harm: each is refused in words that name it, and no code in them runs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monosema as ms
from monosema.cli.option_files import _dotenv
from monosema.coders import CLT, SAE, BatchTopK, ReLU, TanhReLU
from monosema.core.config import from_yaml, load_plain, to_plain
from monosema.core.errors import FileError, UserError
from monosema.core.files import read_json
from monosema.data import ActivationCache
from monosema.data.cache.folders import open_folder
from monosema.data.cache.manifest import MANIFEST, CachePlan, Manifest, read_chunk, read_manifest
from monosema.data.cache.shards import Shard, checksum, write_shard
from monosema.data.config import TextSource
from monosema.data.documents import documents_from, open_source
from monosema.data.rows import ArrayRows
from monosema.evaluation.crosscoder_report import CrosscoderReport
from monosema.features import FeatureStore
from monosema.runs.config import RunConfig
from monosema.runs.folder import RunFolder
from monosema.training import Checkpoint, CheckpointPlan, Checkpoints
from monosema.training.checkpoint import _checksum

SITES = (("blocks.0.hook_resid_post", 4),)
PLAN = CheckpointPlan(n_steps=12, newest=3)


class Bomb:
    """What writes a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, (f"touch {self.mark}",)


def dictionary(folder: Path) -> Path:
    return ms.save(SAE(4, 8, activation=ReLU(), hook_name="blocks.0.hook_resid_post"), folder / "dictionary")


def own_dictionary(folder: Path) -> Path:
    return ms.save(SAE(4, 8, activation=TanhReLU(), hook_name="blocks.0.hook_resid_post"), folder / "own")


def cache(folder: Path) -> Path:
    target = folder / "cache"
    target.mkdir()
    plan = CachePlan(SITES, SITES, "float32", 1, 8, {"seed": 0})
    places = torch.arange(8)
    record = write_shard(
        open_folder(target), "a.safetensors", plan.shards, Shard(torch.ones(8, 4), places, places, places)
    )
    (target / MANIFEST).write_text(json.dumps(Manifest(plan, (record,)).plain()))
    assert len(list(ActivationCache(target, 4))) == 2
    return target


def checkpoint(folder: Path) -> Path:
    Checkpoints(folder / "checkpoints", PLAN).write(3, {"a": torch.ones(2)}, {"step": 3})
    return folder / "checkpoints"


def read_cache(target: Path) -> None:
    list(ActivationCache(target, 4))


def read_checkpoint(target: Path) -> None:
    Checkpoints(target, PLAN).newest()


def read_text(path: Path) -> None:
    list(documents_from(open_source(TextSource(source=path))))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """``change`` the JSON value in ``path``."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def alter_shard(target: Path, content: bytes) -> None:
    """Put ``content`` in the shard's place and make the manifest fit."""
    (target / "a.safetensors").write_bytes(content)
    changed = {"check": checksum(content), "n_bytes": len(content)}
    edit(target / MANIFEST, lambda value: value["shards"][0].update(changed))


def alter_checkpoint(target: Path, content: bytes) -> None:
    """Put ``content`` in the tensors' place with a checksum that fits."""
    state = target / "step_000000003"
    (state / "state.safetensors").write_bytes(content)
    plain = {"files": {"state.safetensors": hashlib.sha256(content).hexdigest()}}
    (state / "state.json").write_text(json.dumps({**plain, "sha256": _checksum(plain)}))


def pickled(mark: Path, kind: str) -> bytes:
    """A pickle that runs code, bare or as torch saves it."""
    if kind == "pickle":
        return pickle.dumps(Bomb(mark))
    path = mark.with_name("bomb.pt")
    torch.save({"W_enc": Bomb(mark)}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_a_pickle_in_place_of_tensors_is_never_run(tmp_path, kind):
    mark = tmp_path / "harmed"
    content = pickled(mark, kind)
    (dictionary(tmp_path) / "sae_weights.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="safetensors"):
        ms.load(tmp_path / "dictionary")
    (own_dictionary(tmp_path) / "monosema.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="safetensors"):
        ms.load(tmp_path / "own")
    shutil.rmtree(tmp_path / "dictionary")
    (dictionary(tmp_path) / "sparsity.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"sparsity\.safetensors"):
        ms.load(tmp_path / "dictionary")
    alter_shard(cache(tmp_path), content)
    with pytest.raises(FileError, match=r"a\.safetensors"):
        read_cache(tmp_path / "cache")
    alter_checkpoint(checkpoint(tmp_path), content)
    with pytest.raises(FileError, match="of 1 checkpoint in"):
        read_checkpoint(tmp_path / "checkpoints")
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "features.json").write_text('{"format": "monosema features 1"}')
    (tmp_path / "features" / "features.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"features\.safetensors"):
        FeatureStore.load(tmp_path / "features")
    (tmp_path / "crosscoder.json").write_text('{"format": "monosema crosscoder report 1"}')
    (tmp_path / "crosscoder.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="crosscoder"):
        CrosscoderReport.load(tmp_path / "crosscoder.json")
    for name in ("a.npy", "a.pt", "a.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=name):
            ArrayRows(tmp_path / name, 4)
    for name in ("a.txt", "a.json", "a.jsonl", "a.gz", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_text(tmp_path / name)
    (tmp_path / "ae.pt").write_bytes(content)
    with pytest.raises(UserError):
        ms.load(tmp_path / "ae.pt")
    assert not mark.exists(), "code in a file was run"


def test_an_array_of_pickled_objects_is_never_read(tmp_path):
    array = np.empty((2, 2), dtype=object)
    array[:] = Bomb(tmp_path / "harmed")
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(FileError, match=r"a\.npy"):
        ArrayRows(tmp_path / "a.npy", 1)
    assert not (tmp_path / "harmed").exists()


PATHS = [
    "../secret.safetensors",
    "/etc/passwd",
    "C:\\secret",
    "..",
    ".",
    "",
    "a" * 5000,
    "a\0.safetensors",
    "b/../../secret",
    "\\\\h\\s",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_cache_names_no_file_outside_its_folder(tmp_path, name):
    target = cache(tmp_path)
    shutil.copy(target / "a.safetensors", tmp_path / "secret.safetensors")
    edit(target / MANIFEST, lambda value: value["shards"][0].update(file=name))
    with pytest.raises(FileError, match=r"manifest\.json"):
        read_manifest(open_folder(target))
    records = json.loads((target / MANIFEST).read_text())["shards"]
    (target / "chunk-00000.json").write_text(json.dumps(records))
    with pytest.raises(FileError, match=r"chunk-00000\.json"):
        read_chunk(open_folder(target), 0)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a\0b"])
def test_a_dictionary_is_looked_for_by_a_plain_name(tmp_path, name):
    dictionary(tmp_path / "inside")
    with pytest.raises(UserError):
        ms.load(tmp_path / "inside", name)


def tensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ENTRY = {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]}
BAD_TENSORS = {
    "empty": b"",
    "shorter than its length": b"\x01\x02",
    "a header beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "a header of a gigabyte": struct.pack("<Q", 2**30) + b"{" * 100,
    "no JSON": tensors(b"{" * 64),
    "not UTF-8": tensors(b'{"\xff\xfe": 1}'),
    "nested": tensors(b"[" * 100_000 + b"]" * 100_000),
    "overlapping": tensors({"W_enc": ENTRY, "W_dec": {**ENTRY, "shape": [8, 4]}}, b"\0" * 128),
    "beyond its end": tensors({"W_enc": {**ENTRY, "data_offsets": [0, 2**40]}}, b"\0" * 128),
    "negative": tensors({"W_enc": {**ENTRY, "shape": [-4, -8]}}, b"\0" * 128),
    "huge": tensors({"W_enc": {**ENTRY, "shape": [2**62, 8]}}, b"\0" * 128),
    "digits": tensors(b'{"W_enc": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b"]}}"),
    "a type nobody knows": tensors({"W_enc": {**ENTRY, "dtype": "Q7"}}, b"\0" * 128),
    "complex": tensors({"W_enc": {**ENTRY, "dtype": "C64", "shape": [4, 4]}}, b"\0" * 128),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_forged_safetensors_are_refused(tmp_path, what):
    content = BAD_TENSORS[what]
    (dictionary(tmp_path) / "sae_weights.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"sae_weights\.safetensors"):
        ms.load(tmp_path / "dictionary")
    alter_checkpoint(checkpoint(tmp_path), content)
    if what != "complex":  # a tensor like any other, there
        with pytest.raises(FileError, match="of 1 checkpoint in"):
            read_checkpoint(tmp_path / "checkpoints")
    if content:
        alter_shard(cache(tmp_path), content)
        with pytest.raises(FileError, match=r"a\.safetensors"):
            read_cache(tmp_path / "cache")


BAD_JSON = {
    "empty": b"",
    "100,000 lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 mappings": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "200 lists": b"[" * 200 + b"]" * 200,
    "10,000 digits": b"9" * 10_000,
    "1,000 digits": b'{"n_rows": ' + b"9" * 1000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "half a character": b'{"a": "\\ud800"}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "NUL": b"\0" * 64,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_forged_json_is_refused(tmp_path, what):
    content = BAD_JSON[what]
    readers: dict[Path, Callable[[], object]] = {
        dictionary(tmp_path) / "cfg.json": lambda: ms.load(tmp_path / "dictionary"),
        cache(tmp_path) / MANIFEST: lambda: read_cache(tmp_path / "cache"),
        checkpoint(tmp_path) / "step_000000003" / "state.json": lambda: read_checkpoint(tmp_path / "checkpoints"),
        tmp_path / "report.json": lambda: ms.Report.load(tmp_path / "report.json"),
        tmp_path / "config.json": lambda: load_plain(tmp_path / "config.json"),
        tmp_path / "features" / "features.json": lambda: FeatureStore.load(tmp_path / "features"),
        tmp_path / "crosscoder.json": lambda: CrosscoderReport.load(tmp_path / "crosscoder.json"),
    }
    if what not in ("10,000 digits", "half a character", "200 lists", "1,000 digits"):
        readers[tmp_path / "texts.json"] = lambda: read_text(tmp_path / "texts.json")
    (tmp_path / "features").mkdir()
    for path, read in readers.items():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read()
        assert path.name in str(caught.value) or "of 1 checkpoint in" in str(caught.value)


SAELENS_EDITS: list[dict[str, Any]] = [
    {"architecture": ["standard"]}, {"architecture": "a" * 5000}, {"metadata": 7}, {"metadata": {"hook_name": 7}},
    {"metadata": {"hook_head_index": "0"}}, {"monosema": []}, {"monosema": [1]}, {"monosema": {"activation": [1]}},
    {"monosema": {"activation": {"kind": {}}}}, {"monosema": {"metadata": {"model": 7}}}, {"dtype": "float3"},
    {"monosema": {"metadata": {"models": {"a": 7}}}}, {"monosema": {"metadata": {"tokens": "x"}}}, {"d_in": [4]},
    {"normalize_activations": ["none"]}, {"architecture": "topk", "k": "2"}, {"architecture": "topk", "k": 10**9},
]  # fmt: skip
OWN_EDITS: list[dict[str, Any]] = [
    {"activation": 7}, {"activation": {"kind": ["ReLU"]}}, {"b_dec": [None]}, {"write_widths": [[[]]]}, {"seeds": 1},
    {"read_widths": [-4, 8]}, {"d_sae": -8}, {"dtype": "int8"}, {"hook_name": 7},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SAELENS_EDITS)))
def test_a_forged_saelens_config_is_refused(tmp_path, number):
    edit(dictionary(tmp_path) / "cfg.json", lambda value: value.update(SAELENS_EDITS[number]))
    with pytest.raises(FileError, match="dictionary"):
        ms.load(tmp_path / "dictionary")


@pytest.mark.parametrize("text", [".nan", "nan", "'-NaN'"])
def test_no_option_is_not_a_number(text):
    with pytest.raises(UserError, match=r"training\.beta1: expected a number"):
        from_yaml(RunConfig, f"training: {{beta1: {text}}}")


@pytest.mark.parametrize("number", range(len(OWN_EDITS)))
def test_a_forged_config_of_our_own_is_refused(tmp_path, number):
    edit(own_dictionary(tmp_path) / "cfg.json", lambda value: value["dictionary"].update(OWN_EDITS[number]))
    with pytest.raises(FileError, match="own"):
        ms.load(tmp_path / "own")


def test_a_json_file_larger_than_any_is_not_read(tmp_path):
    with open(tmp_path / "cfg.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(FileError, match=r"cfg\.json has 1,099,511,627,776 bytes, at most 67,108,864"):
        read_json(tmp_path / "cfg.json")


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 40))
BAD_YAML = {
    "aliases of aliases": LAUGHS,
    "merges of merges": MERGES,
    "itself": "a: &a [*a]",
    "an object": "a: !!python/object/apply:os.system ['touch harmed']",
    "a name": "a: !!python/name:os.system",
    "a module": "a: !!python/module:os",
    "a date that is none": "a: 2001-99-99",
    "nested": "a: " + "[" * 5000,
    "100 lists": "a: " + "[" * 100 + "]" * 100,
    "10,000 digits": "a: " + "9" * 10_000,
    "a list as a name": "? [a, b]\n: 1",
    "not a mapping": "- 1",
    "long": "a: 1\n" * 100_000,
    "a number that is none": "a: !!int 'x'",
}


@pytest.mark.parametrize("what", BAD_YAML)
def test_forged_yaml_is_refused(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(BAD_YAML[what])
    with pytest.raises(UserError, match=r"a\.yaml"):
        load_plain(tmp_path / "a.yaml")
    if what != "long":
        with pytest.raises(UserError):
            from_yaml(RunConfig, BAD_YAML[what])
    assert list(tmp_path.iterdir()) == [tmp_path / "a.yaml"]


def test_yaml_with_a_few_aliases_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {lr: 1, 2001-01-01: x}\nb: {<<: *a, c: 2}\n3: *a\n")
    assert load_plain(tmp_path / "a.yaml")["b"]["lr"] == 1


def test_a_gzip_bomb_is_refused_before_memory_is_gone(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wb", compresslevel=6) as file:
        for _ in range(66):
            file.write(b"\0" * 2**20)
    with pytest.raises(FileError, match=r"a\.txt\.gz decompresses to more than 200 times its size"):
        read_text(tmp_path / "a.txt.gz")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data/0", "w") as inner:
        for _ in range(64):
            inner.write(b"\0" * 2**20)
    content = bomb.read_bytes()
    (dictionary(tmp_path) / "sae_weights.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"sae_weights\.safetensors"):
        ms.load(tmp_path / "dictionary")
    for name in ("a.npz", "a.npy", "a.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=name):
            ArrayRows(tmp_path / name, 4)


def test_widths_that_the_tensors_do_not_have_take_no_memory(tmp_path):
    coder = CLT([4, 4], [4, 4], 8, activation=BatchTopK(k=2))
    for part in coder.parts:
        part.coder.activation.set_threshold(0.5)
    coders = {"own": own_dictionary(tmp_path), "stack": ms.save(coder, tmp_path / "stack")}
    for kind, folder in coders.items():
        widths = {"d_in": 2**40, "d_sae": 2**40, "d_out": 2**40} if kind == "own" else {"d_sae": 2**40}
        for change in (widths, {"read_widths": [1] * 10**5}):
            edit(folder / "cfg.json", lambda value, c=change: value["dictionary"].update(c))
            with pytest.raises(FileError, match=folder.name):
                ms.load(folder)


def test_a_cache_of_very_many_chunks_is_counted_by_what_is_there(tmp_path):
    target = cache(tmp_path)
    edit(target / MANIFEST, lambda value: value.update(n_chunks=2**40))
    (target / MANIFEST).rename(target / "plan.json")
    with pytest.raises(FileError, match="is not finished"):
        read_manifest(open_folder(target))


READS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "dictionary": ("dictionary/cfg.json", lambda folder: ms.load(folder / "dictionary")),
    "weights": ("dictionary/sae_weights.safetensors", lambda folder: ms.load(folder / "dictionary")),
    "density": ("dictionary/sparsity.safetensors", lambda folder: ms.load(folder / "dictionary")),
    "manifest": ("cache/manifest.json", lambda folder: read_cache(folder / "cache")),
    "shard": ("cache/a.safetensors", lambda folder: read_cache(folder / "cache")),
    "state": ("checkpoints/step_000000003/state.json", lambda folder: read_checkpoint(folder / "checkpoints")),
    "tensors": ("checkpoints/step_000000003/state.safetensors", lambda folder: read_checkpoint(folder / "checkpoints")),
    "report": ("report.json", lambda folder: ms.Report.load(folder / "report.json")),
    "config": ("a.yaml", lambda folder: load_plain(folder / "a.yaml")),
    "json config": ("a.json", lambda folder: load_plain(folder / "a.json")),
    "env": (".env", lambda folder: _dotenv(folder / ".env")),
    "array": ("a.npy", lambda folder: ArrayRows(folder / "a.npy", 4)),
    "text": ("a.txt", lambda folder: read_text(folder / "a.txt")),
    "gzip": ("a.txt.gz", lambda folder: read_text(folder / "a.txt.gz")),
    "parquet": ("a.parquet", lambda folder: read_text(folder / "a.parquet")),
    "features": ("features/features.json", lambda folder: FeatureStore.load(folder / "features")),
    "metrics": ("run/metrics.jsonl", lambda folder: RunFolder(folder / "run", {}, PLAN).metrics()),
    "run": ("run/config.yaml", lambda folder: RunFolder(folder / "run", to_plain(RunConfig()), PLAN).refuse_others()),
    "failure": ("run/failure.json", lambda folder: RunFolder(folder / "run", {}, PLAN).failure()),
}


NO_FILES = [(what, kind) for what in READS for kind in ("folder", "pipe", "forbidden", "loop")]
NO_FILES.remove(("text", "folder"))  # a folder of texts is a text


@pytest.mark.parametrize(("what", "kind"), NO_FILES)
def test_what_is_no_file_is_refused_at_once(tmp_path, what, kind):
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in this file system")
    if kind == "forbidden" and os.geteuid() == 0:
        pytest.skip("root reads every file")
    dictionary(tmp_path)
    cache(tmp_path)
    checkpoint(tmp_path)
    name, read = READS[what]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "forbidden":
            path.write_text("x")
            path.chmod(0)
    if kind == "loop" and what in ("density", "failure", "env"):
        read(tmp_path)  # as one that is not there
        return
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert path.name in str(caught.value) or "of 1 checkpoint in" in str(caught.value) or kind == "loop"


@pytest.mark.parametrize("line", ["[1]", "7", '{"step": null}', '{"loss": 1}', "\ufffd", "[" * 5000, '{"step": 1'])
def test_lines_that_are_no_metrics_are_passed_over(tmp_path, line):
    first = '{"step": 1, "loss": 2}\n'
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(first + line + '\n{"step": 2, "loss": 1}\n')
    folder = RunFolder(tmp_path / "run", {}, PLAN)
    assert folder.metrics() == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1}]
    logged = {"n_bytes": len(first), "sha256": hashlib.sha256(first.encode()).hexdigest()}
    folder.cut_metrics(Checkpoint(1, tmp_path, {}, {"metrics": logged}))
    assert folder.metrics() == [{"step": 1, "loss": 2}]
