"""drrik's folders and legacy pickles, made here as drrik makes them; and the export, read by NumPy and by us."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cache import STREAM, WIDTHS, number_cache, stored

import monosema as ms
from monosema.core.errors import ConfigError, DataError, FileError
from monosema.data import ActivationCache
from monosema.data.cache import drrik_export, export_npy, is_cache, open_source
from monosema.data.cache.drrik import DrrikShards
from monosema.data.cache.drrik_metadata import hook_name_of, layer_path_of
from monosema.data.cache.sources import read_whole

N, D = 90, 4
PATHS = ["model.layers[3].mlp", "model.layers[5].mlp"]
SITES = ["blocks.3.hook_mlp_out", "blocks.5.hook_mlp_out"]


def activations(dtype: str = "float32", n_layers: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, D * n_layers)).astype(dtype)


def metadata(paths: list[str] = PATHS, **changes: Any) -> dict[str, Any]:
    """As ``ActivationExtractor.extract`` makes it."""
    samples = [{"sample_idx": i, "text": f"text {i}", "input_ids": np.arange(i, i + 7)} for i in range(N)]
    config = {
        "model": {"model_name": "google/gemma-2b", "revision": "main", "torch_dtype": "float16"},
        "dataset": {"dataset_name": "wikitext", "split": "train", "num_samples": N},
        "mlp_layers": [3, 5],
        "output_dir": Path("out"),
    }
    known = {"config": config, "n_samples": N, "activation_dim": D * len(paths), "layer_paths": list(paths)}
    return {**known, "samples_metadata": samples, **changes}


def save(folder: Path, x: np.ndarray | None = None, values: Any = None, protocol: int = 4) -> Path:
    folder.mkdir()
    np.save(folder / "activations.npy", activations() if x is None else x)
    (folder / "metadata.pkl").write_bytes(pickle.dumps(metadata() if values is None else values, protocol))
    return folder


def save_legacy(path: Path, x: Any = None, values: Any = None, protocol: int = 4) -> Path:
    data = {"activations": activations() if x is None else x, "metadata": metadata() if values is None else values}
    path.write_bytes(pickle.dumps(data, protocol))
    return path


def rows_of(where: Any) -> dict[str, torch.Tensor]:
    source = open_source(where)
    shards = [read_whole(source, record) for record in source.manifest.shards]
    return {name: torch.cat([getattr(shard, name) for shard in shards]) for name in vars(shards[0])}


# -- reading


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("kind", ["folder", "file", "legacy", "legacy of protocol 0"])
def test_a_folder_is_a_cache(tmp_path: Path, kind: str, dtype: str) -> None:
    x = activations(dtype)
    if kind.startswith("legacy"):
        where = save_legacy(tmp_path / "a.pkl", x, protocol=0 if "0" in kind else 4)
    else:
        where = save(tmp_path / "a", x) / ("activations.npy" if kind == "file" else "")
    assert is_cache(where)
    found = rows_of(where)
    kept = "float32" if dtype == "float64" else dtype
    assert np.array_equal(found["rows"].numpy(), x.astype(kept)) and found["rows"].dtype == getattr(torch, kept)
    assert found["contexts"].tolist() == list(range(N)) and set(found["positions"].tolist()) == {6}
    assert found["token_ids"].tolist() == [i + 6 for i in range(N)]
    cache = ActivationCache(where, 10, validation_fraction=0.2, model="google/gemma-2b")
    assert cache.layout.reads == tuple((name, D) for name in SITES) and cache.layout.is_autoencoder
    assert cache.n_validation == 18 and len(cache.manifest.shards) > 8
    record = json.loads(json.dumps(cache.record()))
    assert record["model"] == {"name": "google/gemma-2b", "source": "google/gemma-2b", "revision": "main"}
    assert record["drrik"]["mlp_layers"] == [3, 5] and record["drrik"]["output_dir"] == "<PurePosixPath>"
    samples = cache.source.samples
    assert [(each.sample_idx, each.text) for each in samples] == [(i, f"text {i}") for i in range(N)]
    assert all(each.input_ids.tolist() == list(range(i, i + 7)) for i, each in enumerate(samples))


def test_the_array_is_mapped_and_cut_into_sites(tmp_path: Path) -> None:
    where, x = save(tmp_path / "a"), torch.from_numpy(activations())
    assert isinstance(open_source(where)._array, np.memmap)
    rows = torch.cat(list(ActivationCache(where, 1, hook_names=SITES[1])))
    assert rows.shape == (N, D) and torch.equal(rows.unique(dim=0), x[:, D:].unique(dim=0))
    both = torch.cat(list(ActivationCache(where, 1, hook_names=SITES[1], targets=SITES[0])))
    assert torch.equal(both.unique(dim=0), torch.cat([x[:, D:], x[:, :D]], 1).unique(dim=0))
    with pytest.raises(ConfigError, match=r"it has blocks\.3\.hook_mlp_out, blocks\.5\.hook_mlp_out"):
        ActivationCache(where, 1, hook_names="blocks.4.hook_mlp_out")


def test_content_decides_the_fingerprint(tmp_path: Path) -> None:
    x = activations()
    x[50, 1] += 1
    one, same, other = save(tmp_path / "a"), save_legacy(tmp_path / "b.pkl"), save(tmp_path / "c", x)
    prints = [ActivationCache(where, 4).manifest.fingerprint for where in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_training_by_path_records_site_and_model(tmp_path: Path) -> None:
    where = save(tmp_path / "a", activations(n_layers=1), metadata(PATHS[:1]))
    config = ms.TrainingConfig(tokens=24)
    for source in (where, str(where / "activations.npy"), save_legacy(tmp_path / "b.pkl")):
        several = str(source).endswith(".pkl")
        coder = ms.Crosscoder([D, D], 8) if several else ms.SAE(D, 8, activation=ms.TopK(k=2))
        result = ms.train(coder, source, config, batch_size=8, evaluation=False, progress=False)
        assert result.coder.hook_name == "+".join(SITES if several else SITES[:1])
        assert result.coder.metadata["model"]["name"] == "google/gemma-2b"
        ms.save(result.coder, tmp_path / "coder")
        assert ms.load(tmp_path / "coder").hook_name == result.coder.hook_name
    plain = tmp_path / "plain.npy"
    np.save(plain, activations())
    assert not is_cache(plain) and not is_cache(activations()) and not is_cache(None)


@pytest.mark.parametrize(
    ("path", "model", "name"),
    [
        ("model.layers[3].mlp", "google/gemma-2b", "blocks.3.hook_mlp_out"),
        ("model.layers[12].mlp", "google/gemma-7b-it", "blocks.12.hook_mlp_out"),
        ("transformer.h[0].mlp", "gpt2", "blocks.0.hook_mlp_out"),
        ("model.layers[3].ffn", "x", "blocks.3.hook_mlp_out"),
        ("layers[3].mlp", "x", "blocks.3.hook_mlp_out"),
        ("model.layers[3].mlp", "google/gemma-2-2b", "model.layers.3.mlp:out"),
        ("model.layers[3].mlp", "google/gemma-3-1b-it", "model.layers.3.mlp:out"),
        ("model.layers[3].mlp", "allenai/OLMo-2-1124-7B", "model.layers.3.mlp:out"),
        ("model.layers[3].mllp", "microsoft/phi-2", "model.layers.3.mllp:out"),
        ("bert.encoder.layer[3].output", "bert-base-uncased", "bert.encoder.layer.3.output:out"),
        ("blocks.2.attn.hook_z[1]", "x", "blocks.2.attn.hook_z[1]"),
        ("second:blocks.2.hook_mlp_out", "x", "second:blocks.2.hook_mlp_out"),
    ],
)
def test_layer_paths_become_hook_names(path: str, model: str, name: str) -> None:
    assert hook_name_of(path, model) == name
    assert hook_name_of(layer_path_of(name, model), model) == name


def test_a_layer_path_names_what_a_model_has() -> None:
    model = ms.load_model("builtin")
    tokens = torch.arange(10)[None]
    path = next(name for name, _ in model.hf.named_modules() if name.endswith(".3.mlp"))
    written = path.replace(".3.mlp", "[3].mlp")
    ours, theirs = (hook_name_of(written, name) for name in ("builtin", "gemma-2-2b"))
    assert ours == "blocks.3.hook_mlp_out" and theirs == f"{path}:out"
    values = model.capture(tokens, [ours, theirs])
    assert torch.equal(values[ours], values[theirs])


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "other rows": ({"n_samples": N + 1}, "n_samples is 91, the activations are of 90 samples"),
    "other width": ({"activation_dim": 7}, "activation_dim is 7 for 2 layers, the activations are 8 wide"),
    "uneven width": ({"layer_paths": [*PATHS, "model.layers[6].mlp"]}, "for 3 layers"),
    "no layers": ({"layer_paths": []}, "names no layers"),
    "no paths": ({"layer_paths": [3, 5]}, "3 is no path"),
    "a path out of hand": ({"layer_paths": ["a+b", "c"]}, "'a.b' is no path"),
    "one layer twice": ({"layer_paths": PATHS[:1] * 2}, "names a layer twice"),
    "few samples": ({"samples_metadata": [{}]}, "not one mapping for each of 90 samples"),
    "samples that are none": ({"samples_metadata": [3] * N}, "sample 0 is no mapping"),
    "ids that are none": ({"samples_metadata": [{"input_ids": ["a"]}] * N}, "input_ids of sample 0"),
    "ids of two dimensions": (
        {"samples_metadata": [{"input_ids": np.zeros((2, 2), int)}] * N},
        "input_ids of sample 0",
    ),
    "huge ids": ({"samples_metadata": [{"input_ids": [2**40]}] * N}, "input_ids of sample 0"),
    "text that is none": ({"samples_metadata": [{"text": ["a"]}] * N}, "the text of sample 0"),
    "endless text": ({"config": {"a": "x" * 10_001}}, "a text too long for an option"),
    "huge number": ({"samples_metadata": [{"sample_idx": 2**40}] * N}, "has the number 1099511627776"),
    "config that is none": ({"config": [1]}, "no mapping of options"),
    "endless config": ({"config": {"a": [0] * 10_001}}, "no mapping of options"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_metadata_of_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    changes, message = CHANGES[kind]
    where = save(tmp_path / "a", values=metadata(**changes))
    with pytest.raises(FileError, match=r"metadata\.pkl") as error:
        open_source(where)
    assert message in str(error.value).replace("a+b", "a.b")


def test_what_drrik_can_leave_out(tmp_path: Path) -> None:
    where = save(tmp_path / "a", values=metadata(samples_metadata=[], activation_dim=D, config=None))
    found, source = rows_of(where), open_source(where)
    assert source.samples == () and "model" not in source.manifest.plan.stream
    assert {int(each) for name in ("token_ids", "contexts", "positions") for each in found[name]} == {-1}


class Bomb:
    """What makes ``mark`` where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, (f"touch {self.mark}",)


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    where = save(tmp_path / "a", values=metadata(config={"model": Bomb(mark)}, extra=Bomb(mark)))
    assert open_source(where).manifest.plan.stream == {"drrik": {"model": "<ForeignRecord>"}}
    for name, value in (("b.pkl", Bomb(mark)), ("c.pkl", [Bomb(mark)])):
        (tmp_path / name).write_bytes(pickle.dumps(value))
        with pytest.raises(FileError, match=rf"{name} holds no activations"):
            open_source(tmp_path / name)
    with pytest.raises(FileError, match=r"must be an array .*got ForeignRecord"):
        open_source(save_legacy(tmp_path / "d.pkl", Bomb(mark)))
    laughs: Any = ["ha"] * 10
    for _ in range(30):
        laughs = [laughs] * 10
    with pytest.raises(FileError, match="no mapping of options"):
        open_source(save(tmp_path / "e", values=metadata(config={"a": laughs})))
    ids, text = list(range(100)), "\ud800" * 100
    shared = {"samples_metadata": [{"sample_idx": n, "text": text, "input_ids": ids} for n in range(N)]}
    samples = open_source(save(tmp_path / "f", values=metadata(**shared))).samples
    assert all(each.input_ids is samples[0].input_ids and each.text is samples[0].text for each in samples)
    assert samples[0].text == "?" * 100 and samples[0].input_ids.tolist() == ids
    assert not mark.exists()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((N, D, 2), np.float32), r"must be an array \[n_samples, d\], got float32 \[90, 4, 2\]"),
        (np.zeros((0, D), np.float32), "must be an array"),
        (np.zeros((N, D), np.int32), "must be float16, float32 or float64, got int32"),
    ],
)
def test_arrays_that_are_no_activations(tmp_path: Path, x: np.ndarray, message: str) -> None:
    for where in (save(tmp_path / "a", x), save_legacy(tmp_path / "a.pkl", x)):
        with pytest.raises(FileError, match=message):
            open_source(where)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    x = activations("float64")
    x[70, 5] = 1e300
    with pytest.raises(DataError, match="row 70 holds values that are not finite"):
        rows_of(save(tmp_path / "a", x))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    where = save(tmp_path / "a")
    content = (where / "metadata.pkl").read_bytes()
    (where / "metadata.pkl").write_bytes(content[:-20])
    with pytest.raises(FileError, match=r"metadata\.pkl is no whole pickle"):
        open_source(where)
    (where / "metadata.pkl").unlink()
    with pytest.raises(FileError, match="holds no activation cache"):
        open_source(where)
    (where / "metadata.json").write_text("{")
    with pytest.raises(FileError, match=r"metadata\.json is not valid JSON"):
        open_source(where)
    (where / "metadata.pkl").write_bytes(content)
    (where / "metadata.json").unlink()
    (where / "activations.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(FileError, match=r"activations\.npy"):
        open_source(where)


# -- export


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_an_export_is_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    number_cache(tmp_path / "c", dtype=dtype)
    original = rows_of(tmp_path / "c")
    export_npy(open_source(tmp_path / "c"), tmp_path / "a")
    x = np.load(tmp_path / "a" / "activations.npy", mmap_mode="r")
    kept = torch.float16 if dtype == "float16" else torch.float32
    assert np.array_equal(x, original["rows"].to(kept).numpy()) and x.dtype == original["rows"].to(kept).numpy().dtype
    for name in ("token_ids", "contexts", "positions"):
        assert np.load(tmp_path / "a" / f"{name}.npy").tolist() == original[name].tolist()
    again = rows_of(tmp_path / "a")
    assert torch.equal(again["rows"], original["rows"].to(kept))
    assert all(torch.equal(again[name], original[name]) for name in ("token_ids", "contexts", "positions"))
    cache = ActivationCache(tmp_path / "a", 10, model=STREAM["model"]["name"])
    assert cache.layout == ActivationCache(tmp_path / "c", 10).layout
    assert cache.manifest.plan.stream == STREAM
    found = json.loads((tmp_path / "a" / "metadata.json").read_text())
    assert found["n_samples"] == 300 and found["activation_dim"] == 12
    assert found["layer_paths"] == ["blocks.0.hook_resid_post", "model.layers[1].mlp"]
    assert found["config"]["model"]["model_name"] == "org/base" and found["config"]["mlp_layers"] == [1]
    assert found["config"]["dataset"] == {
        "dataset_name": "stdlib", "dataset_config": None, "split": None, "text_column": None, "num_samples": 300,
        "max_length": 10,
    }  # fmt: skip
    assert [each["input_ids"] for each in found["samples_metadata"]] == original["token_ids"][:, None].tolist()
    assert {(each["text"]) for each in found["samples_metadata"]} == {None}
    monkeypatch.setattr(drrik_export, "MOST_LISTED", 299)
    export_npy(open_source(tmp_path / "c"), tmp_path / "b")
    assert json.loads((tmp_path / "b" / "metadata.json").read_text())["samples_metadata"] == []
    assert torch.equal(rows_of(tmp_path / "b")["token_ids"], original["token_ids"])


def test_an_export_keeps_what_drrik_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = save_legacy(tmp_path / "a.pkl")
    export_npy(open_source(where), tmp_path / "b")
    one, other = open_source(where), open_source(tmp_path / "b")
    assert isinstance(other, DrrikShards) and one.manifest.fingerprint == other.manifest.fingerprint
    assert one.manifest.plan == other.manifest.plan
    for mine, theirs in zip(one.samples, other.samples, strict=True):
        assert (mine.sample_idx, mine.text) == (theirs.sample_idx, theirs.text)
        assert mine.input_ids.tolist() == theirs.input_ids.tolist()
    found = json.loads((tmp_path / "b" / "metadata.json").read_text())
    assert found["layer_paths"] == PATHS and found["config"]["model"]["model_name"] == "google/gemma-2b"
    assert set(metadata()) <= set(found)
    monkeypatch.setattr(drrik_export, "MOST_JSON_BYTES", 1000)
    with pytest.raises(ConfigError, match="read without an export"):
        export_npy(one, tmp_path / "c")
    assert not any(each.name not in ("a.pkl", "b") for each in tmp_path.iterdir())


def test_an_export_is_whole_or_not_there(tmp_path: Path) -> None:
    number_cache(tmp_path / "c")
    source = open_source(tmp_path / "c")
    victim = tmp_path / "c" / source.manifest.shards[-1].file
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(FileError, match="checksum"):
        export_npy(source, tmp_path / "a")
    assert [each.name for each in tmp_path.iterdir()] == ["c"]
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export_npy(source, tmp_path / "a")


def test_an_export_that_is_damaged_is_refused(tmp_path: Path) -> None:
    number_cache(tmp_path / "c")
    for name, change, message in (
        ("sites", lambda v: v["monosema"].update(reads=[[WIDTHS[0][0], 9]]), "metadata.json does not describe"),
        ("plan", lambda v: v["monosema"].pop("reads"), "metadata.json is damaged"),
        ("rows", lambda v: v.update(n_samples=299), "n_samples is 299, the activations are of 300 samples"),
    ):
        where = tmp_path / name
        export_npy(open_source(tmp_path / "c"), where)
        values = json.loads((where / "metadata.json").read_text())
        change(values)
        (where / "metadata.json").write_text(json.dumps(values))
        with pytest.raises(FileError, match=message):
            open_source(where)
    np.save(where / "positions.npy", np.zeros(3, np.int32))
    values.update(n_samples=300)
    (where / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(FileError, match=r"positions\.npy must be int32 \[300\], got int32 \[3\]"):
        open_source(where)


def test_an_export_reads_as_the_cache_trains(tmp_path: Path) -> None:
    number_cache(tmp_path / "c")
    export_npy(open_source(tmp_path / "c"), tmp_path / "a")
    assert torch.equal(stored(tmp_path / "a")["rows"], stored(tmp_path / "c")["rows"])
