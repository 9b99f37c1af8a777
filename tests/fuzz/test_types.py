"""Every reader of JSON and YAML takes exact types: each value of a valid file is put in another type, one at a time.

A key that stands twice is refused by each of them too.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import READERS, _report, kept
from report_cases import REPORTS
from safetensors.torch import load_file, save_file

import monosema as ms
from monosema.core.config import from_plain, load_plain, to_plain
from monosema.core.errors import FileError, UserError
from monosema.core.files import read_json
from monosema.data.cache.folders import open_folder
from monosema.data.cache.manifest import CachePlan, read_chunk, read_manifest
from monosema.data.packed.manifest import FoundText, Position, StoredShard, StoredSide, TokenPlan
from monosema.data.packed.manifest import Manifest as TokenManifest
from monosema.data.packed.manifest import read_manifest as read_packed
from monosema.data.packed.tokenizer import TokenizerIdentity
from monosema.data.packing_config import Packing
from monosema.evaluation.benchmarks import RavelReport
from monosema.formats.checkpoints import checkpoint_tokens
from monosema.runs.config import RunConfig

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Reading:
    """One file, and how it is read."""

    files: Callable[[], dict[str, bytes]]
    """The folder it lies in."""
    file: str
    """Its name there."""
    read: Callable[[Path], object]
    """Reads the folder."""
    free: tuple[str, ...] = ()
    """Beginnings of the paths of values that mean nothing to the reader, or that may be of several types."""


@functools.cache
def seeds(reader: str) -> list[dict[str, bytes]]:
    return READERS[reader].seeds()


def case(reader: str, number: int) -> Callable[[], dict[str, bytes]]:
    return lambda: seeds(reader)[number]


def report() -> dict[str, bytes]:
    return {"report.json": json.dumps(_report(notes=("a",), fve_per_site={"x": 0.5}).to_dict()).encode()}


def benchmark() -> dict[str, bytes]:
    return {"report.json": json.dumps(REPORTS["ravel"].to_dict()).encode()}


def packed() -> dict[str, bytes]:
    identity = TokenizerIdentity(name="a", vocab_size=9, vocab_sha256="b", sha256="c")
    plan = TokenPlan(
        text={"source": "stdlib"}, context_size=4, heldout_fraction=0.1, packing=Packing(),
        attend_across_documents=True, marks={"begin_context": 0}, padding=0, special_token_ids=(0,),
        tokenizer=identity, shard_contexts=8,
    )  # fmt: skip
    shard = StoredShard(file="data-00000.arrow", n_contexts=2, n_bytes=100, crc32=7)
    position = Position(n_documents=3, carried=(1,), carried_documents=(2,), text_sha256="d")
    side = StoredSide(shards=(shard,), position=position, fingerprint="e")
    text = FoundText(text_sha256="f", n_documents=3, n_heldout_documents=1, parts={"x": {"n_tokens": 5}})
    return kept(lambda folder: TokenManifest(plan=plan, train=side, heldout=side, text=text).write(folder))


OF_SAELENS = ("device", "metadata.disable_concat_sequences", "metadata.model_class_name")
READINGS = {
    "saelens": Reading(case("dictionary", 0), "cfg.json", ms.load, OF_SAELENS),
    "before saelens 6": Reading(case("dictionary", 11), "cfg.json", ms.load, ("normalize_activations",)),
    "own": Reading(case("dictionary", 9), "cfg.json", ms.load, OF_SAELENS),
    "stack": Reading(case("dictionary", 10), "cfg.json", ms.load, ("dictionary.activation.k",)),  # may be a fraction
    "cache": Reading(case("cache", 0), "manifest.json", lambda folder: read_manifest(open_folder(folder))),
    "plan of a cache": Reading(
        case("cache", 0), "plan.json", lambda folder: CachePlan.parse(read_json(folder / "plan.json"), "plan.json")
    ),
    "chunk": Reading(case("cache", 0), "chunk-00000.json", lambda folder: read_chunk(open_folder(folder), 0)),
    "packed": Reading(packed, "monosema.json", read_packed, ("plan.packing",)),  # names or ids
    "drrik": Reading(
        case("drrik", 3), "metadata.json", READERS["drrik"].read,
        ("config", "activation_dim", "layer_paths", "monosema.stream.drrik"),
    ),
    "features": Reading(case("features", 0), "features.json", READERS["features"].read),
    "crosscoder": Reading(case("crosscoder_report", 0), "crosscoder.json", READERS["crosscoder_report"].read),
    "report": Reading(report, "report.json", lambda folder: ms.Report.load(folder / "report.json")),
    "benchmark": Reading(benchmark, "report.json", lambda folder: RavelReport.load(folder / "report.json")),
    "config": Reading(
        lambda: {"a.json": json.dumps(to_plain(RunConfig())).encode()},
        "a.json",
        lambda folder: from_plain(RunConfig, load_plain(folder / "a.json")),
        ("coder.activation.k", "training.lr", "training.epsilon"),
    ),
    "checkpoint": Reading(
        case("run", 0),
        "checkpoints/step_000000002/state.json",
        lambda folder: checkpoint_tokens(folder / "checkpoints" / "step_000000002"),
        ("step", "metrics", "files", "sha256"),
    ),
}  # fmt: skip


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Where the values are that hold no others, and what they are; of a list, the first entry alone."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield from leaves(each, (*place, key))
    elif value is not None:
        yield place, value


def others(value: Any) -> list[Any]:
    """What a careless reader takes for ``value``."""
    if isinstance(value, bool):
        return [str(value).lower(), int(value)]
    if isinstance(value, int):
        return [value + 0.5, float(value), str(value), True]
    return [str(value), True] if isinstance(value, float) else [7, [value], True]


def changed(plain: Any, place: Place, new: Any) -> bytes:
    inner = whole = copy.deepcopy(plain)
    for each in place[:-1]:
        inner = inner[each]
    inner[place[-1]] = new
    return json.dumps(whole).encode()


@pytest.fixture(scope="module", params=READINGS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reading, Path, bytes]:
    """A reading, the folder of its files, and the file as it should be."""
    reading, folder = READINGS[request.param], tmp_path_factory.mktemp("reading")
    files = reading.files()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    reading.read(folder)
    return reading, folder, files[reading.file]


def test_a_value_of_another_type_is_refused(written: tuple[Reading, Path, bytes]) -> None:
    reading, folder, text = written
    accepted, plain = [], json.loads(text)
    for place, value in leaves(plain):
        name = ".".join(map(str, place))
        for new in [] if name.startswith(reading.free) else others(value):
            (folder / reading.file).write_bytes(changed(plain, place, new))
            try:
                reading.read(folder)
            except UserError:
                continue
            accepted.append(f"{name}: {value!r} -> {new!r}")
    (folder / reading.file).write_bytes(text)
    assert accepted == []


def test_a_key_that_stands_twice_is_refused_with_its_line(written: tuple[Reading, Path, bytes]) -> None:
    reading, folder, text = written
    plain = json.loads(text)
    key, value = next(iter((plain[0] if isinstance(plain, list) else plain).items()))
    again = f"{json.dumps(key)}: {json.dumps(value)}"
    opened, closed = ("[{", "}]") if isinstance(plain, list) else ("{", "}")
    (folder / reading.file).write_text(f"{opened}\n{again},\n{again}{closed}\n")
    with pytest.raises(UserError, match=f"the key '{key}' stands twice, again in line 3"):
        reading.read(folder)
    (folder / reading.file).write_bytes(text)


TYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I8": torch.int8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("number", "file", "tensor"), [(0, "sae_weights", "W_enc"), (9, "monosema", "W_dec")])
def test_weights_of_a_type_that_cannot_be_computed_in_are_refused(
    tmp_path: Path, name: str, number: int, file: str, tensor: str
) -> None:
    for each, content in seeds("dictionary")[number].items():
        (tmp_path / each).write_bytes(content)
    tensors = load_file(tmp_path / f"{file}.safetensors")
    save_file({**tensors, tensor: tensors[tensor].to(TYPES[name])}, tmp_path / f"{file}.safetensors")
    with pytest.raises(FileError, match=rf"the tensor '{tensor}' is of type {name}; .*float32.*convert it"):
        ms.load(tmp_path)


def test_densities_and_features_are_held_to_their_types_too(tmp_path: Path) -> None:
    for each, content in seeds("dictionary")[1].items():
        (tmp_path / each).write_bytes(content)
    save_file({"sparsity": torch.zeros(8, dtype=torch.float8_e5m2)}, tmp_path / "sparsity.safetensors")
    with pytest.raises(FileError, match="'sparsity' is of type F8_E5M2"):
        ms.load(tmp_path)
    for each, content in seeds("features")[0].items():
        (tmp_path / each).write_bytes(content)
    arrays = load_file(tmp_path / "features.safetensors")
    save_file({**arrays, "numbers.count": arrays["numbers.count"].double()}, tmp_path / "features.safetensors")
    with pytest.raises(FileError, match=r"'numbers\.count' is of type F64; whole numbers"):
        READERS["features"].read(tmp_path)
