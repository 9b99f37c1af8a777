"""Every reader of the library: valid cases that the library itself writes, and how a case is read."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import gzip
import hashlib
import itertools
import json
import os
import pickle
import random
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from mutate import Case
from plant import CODE, planted
from traps import hub_may_be_asked

import monosema as ms
from monosema.cli.option_files import read_option_files
from monosema.coders import (
    CLT,
    SAE,
    AbsTopK,
    BatchTopK,
    Crosscoder,
    Gated,
    JumpReLU,
    ReLU,
    TanhReLU,
    TopK,
    Transcoder,
)
from monosema.core.config import differences, from_plain, load_plain, merge, to_plain, to_yaml
from monosema.core.errors import DataError, UserError
from monosema.core.foreign import FILES
from monosema.data import ActivationCache
from monosema.data.cache import export_npy
from monosema.data.cache import open_source as open_cache
from monosema.data.cache.folders import open_folder
from monosema.data.cache.manifest import (
    MANIFEST,
    PLAN,
    CachePlan,
    Manifest,
    chunk_name,
    read_chunk,
    read_manifest,
    shard_name,
)
from monosema.data.cache.shards import Shard, checksum, write_shard
from monosema.data.config import TextSource
from monosema.data.documents import documents_from, open_source
from monosema.data.packed.manifest import is_packed
from monosema.data.packing_config import Packing
from monosema.data.rows import ArrayRows
from monosema.evaluation.crosscoder_report import CrosscoderReport, CrosscoderThresholds, LatentSites, SiteFigures
from monosema.features import FeatureStore
from monosema.formats import registry
from monosema.runs import folder as run_folder
from monosema.runs.checksums import FILE as CHECKSUMS
from monosema.runs.checksums import _checksum as record_sum
from monosema.runs.config import RunConfig
from monosema.runs.describe import describe
from monosema.runs.folder import RunFolder
from monosema.training import CheckpointPlan, Checkpoints
from monosema.training.checkpoint import _checksum as checkpoint_sum

_BROKEN = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What a forger meets in files that are damaged already."""


@dataclass(frozen=True)
class Reader:
    """One reader."""

    seeds: Callable[[], list[Case]]
    """Valid cases."""
    read: Callable[[Path], None]
    """Reads the files in a folder and uses what it finds as the library does."""
    forge: Callable[[Case], Case] = lambda case: case
    """Puts checksums right that a forger would put right."""
    may_write: frozenset[str] = frozenset()
    """Parts of the names that it may write."""


def kept(write: Callable[[Path], object]) -> Case:
    """The files that ``write`` puts into a new folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "case"
        folder.mkdir()
        write(folder)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# -- dictionaries


def _dictionaries() -> list[Case]:
    activations = [ReLU(), TopK(k=2), AbsTopK(k=2), BatchTopK(k=2), Gated(), JumpReLU(init_threshold=0.1), TanhReLU()]
    names: dict[str, Any] = {"hook_name": "blocks.0.hook_resid_post"}
    coders: list[Any] = [SAE(4, 8, activation=each, **names) for each in activations]
    other: dict[str, Any] = {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"}
    coders.append(Transcoder(4, 4, 8, activation=JumpReLU(init_threshold=0.1), skip=True, **other))
    coders.append(Transcoder(4, 6, 8, activation=TopK(k=2), **other))
    coders.append(Crosscoder([4, 4], 8, activation=ReLU()))
    coders.append(CLT([4, 4], [4, 4], 8, activation=BatchTopK(k=2)))
    cases = []
    for number, coder in enumerate(coders):
        for part in coder.parts:
            if hasattr(part.coder.activation, "set_threshold"):
                part.coder.activation.set_threshold(0.5)
        coder.metadata.update(tokens={"source": "stdlib", "context_size": 8}, model={"name": "builtin"}, seed=0)
        density = torch.full((coder.d_sae,), -2.0) if number % 2 else None
        cases.append(kept(lambda folder, c=coder, d=density: ms.hub.save(c, folder / "coder", log10_density=d)))
    cases = [{name.removeprefix("coder/"): content for name, content in case.items()} for case in cases]
    old = {"d_in": 4, "d_sae": 8, "hook_point": "blocks.0.hook_resid_post", "hook_point_head_index": None,
           "activation_fn_str": "relu", "dtype": "torch.float32", "finetuning_scaling_factor": False,
           "normalize_activations": "none", "sae_lens_version": "3.1.0"}  # fmt: skip
    return [*cases, {**cases[0], "cfg.json": json.dumps(old).encode()}]


def _read_dictionary(folder: Path) -> None:
    coder = ms.load(folder, device="cpu")
    coder(torch.ones(2, coder.d_in, dtype=next(coder.parameters()).dtype))
    describe(folder)


# -- caches

_SITES = (("blocks.0.hook_resid_post", 4), ("blocks.1.hook_mlp_out", 2))


def _caches() -> list[Case]:
    return [kept(lambda folder, d=dtype: _write_cache(folder, d)) for dtype in ("float32", "bfloat16", "int8")]


def _write_cache(folder: Path, dtype: str) -> None:
    plan = CachePlan(_SITES, _SITES, dtype, 2, 5, {"model": {"name": "builtin"}, "seed": 0})
    write = (folder / PLAN).write_text
    write(json.dumps(plan.plain()))
    shards = []
    for chunk in range(2):
        rows, places = torch.randn(5, 6), torch.arange(5)
        record = write_shard(
            open_folder(folder), shard_name(chunk, 0), plan.shards, Shard(rows, places, places, places)
        )
        (folder / chunk_name(chunk)).write_text(json.dumps([asdict(record)]))
        shards.append(record)
    (folder / MANIFEST).write_text(json.dumps(Manifest(plan, tuple(shards)).plain()))


def _read_cache(folder: Path) -> None:
    for number in range(2):
        with contextlib.suppress(UserError):  # the next one, or the manifest, says what is wrong
            read_chunk(open_folder(folder), number)
    read_manifest(open_folder(folder))
    cache = ActivationCache(folder, 4, validation_fraction=0.3)
    cache.plan(4)
    cache.record()
    list(cache)
    _ = cache.validation


def _forge_cache(case: Case) -> Case:
    """Sizes and checksums of the shards as they are."""
    new = dict(case)
    for name in (MANIFEST, chunk_name(0), chunk_name(1)):
        with contextlib.suppress(*_BROKEN):
            values = json.loads(new[name])
            for record in values["shards"] if name == MANIFEST else values:
                if (content := case.get(record["file"])) is not None:
                    record["check"], record["n_bytes"] = checksum(content), len(content)
            new[name] = json.dumps(values).encode()
    return new


# -- checkpoints and runs

_PLAN = CheckpointPlan(n_steps=12, newest=3)
_LOGGED = {"n_bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}


def _write_checkpoints(folder: Path) -> None:
    tensors = {"W": torch.ones(2, 3), "low": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    for step in (3, 12):
        plain = {"step": step, "rows": {"epoch": 0, "identity": {"seed": 0}}, "metrics": _LOGGED}
        Checkpoints(folder, _PLAN).write(step, tensors, plain, lambda where: (where / "cfg.json").write_text("{}"))


def _read_checkpoints(folder: Path) -> None:
    newest = Checkpoints(folder, _PLAN).newest()
    assert newest is None or (isinstance(newest.plain, dict) and newest.step >= 0)


def _forge_checkpoints(case: Case) -> Case:
    """Checksums of the files as they are."""
    new = dict(case)
    for name in case:
        if name.endswith("state.json"):
            with contextlib.suppress(*_BROKEN):
                plain = json.loads(case[name])
                plain.pop("sha256", None)
                for file in plain["files"]:
                    plain["files"][file] = hashlib.sha256(case[name.replace("state.json", file)]).hexdigest()
                new[name] = json.dumps({**plain, "sha256": checkpoint_sum(plain)}).encode()
    return new


_RUN = RunConfig()
run_folder.version = functools.cache(run_folder.version)  # it looks through all that is installed
_SMALL = {"coder": to_plain(_RUN.coder), "training": {"lr": 0.001, "log_every": 10}}


def _report(**changes: Any) -> ms.Report:
    numbers = {each.name: 0.5 for each in fields(ms.Report) if each.type == "float"}
    counts = {"n_alive": 3, "d_sae": 8, "n_tokens": 100, "dead_fraction_reliable": False}
    return ms.Report(**{**numbers, **counts, **changes})


def _write_run(folder: Path) -> None:
    with RunFolder(folder, _SMALL, _PLAN) as run:
        run.metrics_log.log(1, {"loss": 0.5})
        run.metrics_log.log(2, {"loss": 0.25, "l0": 8})
        run.checkpoints.write(2, {"W": torch.ones(2)}, {"step": 2, "tokens": 8, "metrics": run.metrics_log.record()})
        run.record_failure("diverged")
    coder = SAE(4, 8, activation=ReLU(), hook_name="blocks.0.hook_resid_post")
    with run.writing("coder"):
        ms.save(coder, folder / "coder")
    losses = dict.fromkeys(("ce_clean", "ce_spliced", "ce_ablated", "ce_loss_score", "kl", "kl_ablated"), 0.5)
    models = {"a": {**losses, "kl_score": 0.5, "n_predicted_tokens": 10}}
    report = {**_report(notes=("a",)).to_dict(), "fve_per_site": {"x": 0.5}, "models": models}
    (folder / "report.json").write_text(json.dumps(report))
    (folder / ".lock").unlink(missing_ok=True)


def _read_run(folder: Path) -> None:
    for use in (describe, _use_run, lambda where: str(ms.Report.load(where / "report.json"))):
        with _named(folder):
            use(folder)


def _use_run(folder: Path) -> None:
    with RunFolder(folder, _SMALL, _PLAN) as run:
        run.metrics()
        run.failure()
        run.has_whole("coder")
        run.cut_metrics(run.newest_checkpoint())


def _forge_run(case: Case) -> Case:
    """Checksums of the checkpoints and of what is recorded, as they are."""
    new = _forge_checkpoints(case)
    with contextlib.suppress(*_BROKEN):
        files = json.loads(case[CHECKSUMS])["files"]
        files = {name: hashlib.sha256(case[name]).hexdigest() if name in case else old for name, old in files.items()}
        new[CHECKSUMS] = json.dumps({"files": files, "sha256": record_sum(files)}).encode()
    return new


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Lets the next part be read where this one is refused in words that name the folder."""
    try:
        yield
    except UserError as error:
        if str(folder) not in str(error):
            raise


# -- options


def _configs() -> list[Case]:
    text = to_yaml(RunConfig.__dataclass_fields__["coder"].default).replace("\n", "\n  ")
    text = f"coder:\n  {text}\nother_models: {{b: {{source: x}}}}\n"
    anchors = "a: &a {lr: 0.001}\ntraining:\n  <<: *a\n"
    cases: list[Case] = [
        {"a.yaml": text.encode()},
        {"a.yaml": b"training:\n  lr: 1e-3\n  # a comment\nstream: {hook_names: [a, 'b']}"},
    ]
    return [*cases, {"a.yaml": anchors.encode()}, {"a.json": json.dumps(to_plain(_RUN)).encode()}]


def _read_config(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        plain = load_plain(path)
        with contextlib.suppress(UserError):  # names the option, as several files may be laid over one another
            config = from_plain(RunConfig, merge(to_plain(_RUN), plain))
            assert from_plain(RunConfig, to_plain(config)) == config
        differences(plain, to_plain(_RUN))


def _environments() -> list[Case]:
    text = "# options\nexport MONOSEMA_TRAINING__LR=1e-3\nMONOSEMA_MODEL__SOURCE='builtin'\nOTHER=1\n"
    more = "MONOSEMA_STREAM__HOOK_NAMES=[a, b]\nMONOSEMA_TRAINING__STOP={kind: x}\nMONOSEMA_MODEL__MODEL_KWARGS__A=1\n"
    return [{".env": text.encode()}, {".env": more.encode()}]


def _read_environment(folder: Path) -> None:
    os.chdir(folder)
    try:
        files = read_option_files(RunConfig, None)
    except UserError as error:
        if "MONOSEMA_" not in str(error).upper() and "environment" not in str(error):
            raise
        return
    finally:
        os.chdir("/")
    with contextlib.suppress(UserError):
        config = from_plain(RunConfig, merge(to_plain(_RUN), files.plain))
        assert "'trust_remote_code': True" not in str(to_plain(config)), "a file consented"
        files.refuse_withheld(to_plain(config))


# -- texts


def _texts() -> list[Case]:
    lines = [json.dumps(row) for row in ({"text": "one", "n": 1}, {"text": "two\u2028"}, "three")]
    jsonl, plain = "\n".join(lines).encode(), b"one two\n<|endoftext|>\nthree \xc3\xa9\n"
    many = json.dumps([{"text": "one"}, {"content": "x", "text": "two"}]).encode()
    cases: list[Case] = [{"a.txt": plain}, {"a.txt": b"word " * 30}, {"a.jsonl": jsonl}, {"a.json": many}]
    cases += [{"a.txt.gz": gzip.compress(plain)}, {"a.jsonl.gz": gzip.compress(jsonl)}]
    zstd = pyarrow.Codec("zstd")
    return [*cases, *({f"a.{kind}.zst": bytes(zstd.compress(text))} for kind, text in (("txt", plain), ("json", many)))]


def _tables() -> list[Case]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(folder: Path, table: pa.Table, **options: Any) -> None:
        pq.write_table(table, folder / "a.parquet", **options)

    plain = pa.table({"text": ["one", "two", "three"], "n": [1, 2, 3]})
    odd = pa.table({"content": ["one", None], "list": [[1], [2]], "more": [{"a": 1}, {"a": 2}]})
    options: list[tuple[Any, dict[str, Any]]] = [
        (plain, {}), (plain, {"compression": "zstd", "use_dictionary": False}), (odd, {"compression": "gzip"}),
        (plain, {"compression": "none", "data_page_version": "2.0"}),
    ]  # fmt: skip
    return [kept(lambda folder, t=table, o=more: write(folder, t, **o)) for table, more in options]


def _saved_datasets() -> list[Case]:
    import datasets

    def write(folder: Path) -> None:
        datasets.Dataset.from_dict({"text": ["one", "two", "three"], "n": [1, 2, 3]}).save_to_disk(str(folder / "d"))

    return [{name.removeprefix("d/"): content for name, content in kept(write).items()}]


def _read_texts(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _read_text(path)


def _read_text(path: Path) -> None:
    list(documents_from(open_source(TextSource(source=path))))


def _read_saved_dataset(folder: Path) -> None:
    try:
        _read_text(folder)
    except UserError as error:
        if "the dataset" not in str(error):  # opened, it has no name
            raise


# -- packed tokens


def _packed() -> list[Case]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    import datasets  # noqa: F401  # what a folder without its manifest may be
    from data_tiny import word_tokenizer

    documents = [f"a b c {'d ' * (number % 5)}" for number in range(40)]

    def write(folder: Path, **options: Any) -> None:
        ms.pretokenize(
            documents, word_tokenizer(), 4, folder, heldout_fraction=0.2, shard_bytes=256, progress=False, **options
        )

    return [kept(write), kept(lambda folder: write(folder, attend_across_documents=False))]


def _read_packed(folder: Path) -> None:
    if not is_packed(folder):
        return  # a dataset like any other
    tokens = ms.load_tokens(folder, None)
    for split in (tokens.train, tokens.heldout):
        _ = split.part(), split.fingerprint, split.rows_in_contexts()


def _forge_packed(case: Case) -> Case:
    """Sizes and checksums of the shards as they are."""
    new = dict(case)
    with contextlib.suppress(*_BROKEN):
        values = json.loads(case["monosema.json"])
        for side in ("train", "heldout"):
            for shard in values[side]["shards"]:
                content = case[f"{side}/{shard['file']}"]
                shard["n_bytes"], shard["crc32"] = len(content), zlib.crc32(content)
        new["monosema.json"] = json.dumps(values).encode()
    return new


# -- drrik's activations


def _drrik() -> list[Case]:
    rows = np.arange(48, dtype=np.float32).reshape(12, 4)
    samples = [{"sample_idx": n, "text": f"text {n}", "input_ids": np.arange(n, n + 3)} for n in range(12)]
    config = {"model": {"model_name": "google/gemma-2b"}, "mlp_layers": [1, 2], "output_dir": Path("out")}
    paths = ["model.layers[1].mlp", "model.layers[2].mlp"]
    metadata = {
        "config": config,
        "n_samples": 12,
        "activation_dim": 4,
        "layer_paths": paths,
        "samples_metadata": samples,
    }

    def write(folder: Path, protocol: int) -> None:
        np.save(folder / "activations.npy", rows)
        (folder / "metadata.pkl").write_bytes(pickle.dumps(metadata, protocol))

    def export(folder: Path) -> None:
        write(folder, 4)
        export_npy(open_cache(folder), folder / "out")

    cases = [kept(lambda folder, p=protocol: write(folder, p)) for protocol in (0, 2, 5)]
    legacy = {"activations": rows, "metadata": metadata}
    exported = {name.removeprefix("out/"): each for name, each in kept(export).items() if name.startswith("out/")}
    return [*cases, exported, *({"a.pkl": pickle.dumps(legacy, protocol)} for protocol in (2, 5))]


def _read_drrik(folder: Path) -> None:
    cache = ActivationCache(folder / "a.pkl" if (folder / "a.pkl").exists() else folder, 1)
    json.dumps(cache.record())
    with contextlib.suppress(DataError):  # values that are not finite
        for batch in itertools.islice(cache, 20):
            assert batch.shape == (1, cache.d_in)


# -- a dictionary with the model and text that it names


def _sessions() -> list[Case]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tiny_language import save_text, save_tiny_model
    from transformers.utils import logging

    logging.disable_progress_bar()

    def write(folder: Path) -> None:
        save_tiny_model(folder / "model")
        save_text(folder / "text.txt")
        (folder / "model" / "modeling_evil.py").write_text("open('ran', 'w').write('x')\n")
        coder = SAE(16, 32, activation=ReLU(), hook_name="blocks.0.hook_mlp_out")
        model = {"source": "model", "trust_remote_code": False, "model_kwargs": {}, "forward_kwargs": {}}
        text = {
            "source": "text.txt",
            "context_size": 16,
            "heldout_fraction": 0.1,
            "packing": to_plain(Packing().resolved()),
        }
        coder.metadata |= {"model": model, "tokens": text, "hook_names": ["blocks.0.hook_mlp_out"], "batch_size": 16}
        ms.save(coder, folder / "coder")

    plain = kept(write)
    config = json.loads(plain["model/config.json"])
    with_code = json.dumps(config | {"auto_map": CODE}).encode()
    cases = [plain, {**plain, "model/config.json": with_code}]
    assert all(_forge_session(case) != case for case in cases), "nothing was planted"
    return cases


def _forge_session(case: Case) -> Case:
    """Fields planted into what the dictionary says of its model and text, consent to the model's code more often."""
    new = dict(case)
    with contextlib.suppress(*_BROKEN):
        values, rng = json.loads(case["coder/cfg.json"]), random.Random(zlib.crc32(repr(sorted(case.items())).encode()))
        planted(rng, values["monosema"]["metadata"])
        if rng.random() < 0.5:
            asked: dict[str, Any] = {"trust_remote_code": True}
            values["monosema"]["metadata"]["model"] |= rng.choice([asked, {"model_kwargs": asked}])
        new["coder/cfg.json"] = json.dumps(values).encode()
    return new


def _read_session(folder: Path) -> None:
    """Model and text are another library's to read: whatever it raises, nothing may run, be fetched or be written."""
    os.chdir(folder)
    try:
        with hub_may_be_asked(), contextlib.suppress(Exception):
            next(ms.open_session("coder", device="cpu").stream)
    finally:
        os.chdir("/")


# -- arrays and reports


def _arrays() -> list[Case]:
    rows = np.arange(48, dtype=np.float32).reshape(12, 4)
    made = [rows, rows.astype(np.float16), np.asfortranarray(rows), rows.reshape(3, 4, 4)]
    return [kept(lambda folder, a=array: np.save(folder / "a.npy", a)) for array in made]


def _read_array(folder: Path) -> None:
    rows = ArrayRows(folder / "a.npy", 1, validation_fraction=0.1)
    rows.record()
    with contextlib.suppress(DataError):  # values that are not finite, found while training: arrays have no name
        for batch in itertools.islice(rows, 20):
            assert batch.shape == (1, rows.d_in)


def _features() -> list[Case]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "features"))
    from features_tiny import known_coder, known_model, known_tokens

    from monosema.features import collect_features

    store = collect_features(known_coder(), known_model(), known_tokens(), n_tokens=16, contexts_per_latent=2)
    case = kept(lambda folder: store.save(folder / "f"))
    return [{name.removeprefix("f/"): content for name, content in case.items()}]


def _read_features(folder: Path) -> None:
    store = FeatureStore.load(folder)
    str(store)
    [str(each) for each in store]


def _crosscoder_reports() -> list[Case]:
    shapes = {"cosine": (3, 1), "site_class": (3,), "reference": (3,), "firing_density": (3,)}
    tensors = {each.name: torch.ones(shapes.get(each.name, (3, 2))) for each in fields(LatentSites)}
    tensors |= {name: torch.zeros(3, dtype=torch.int64) for name in ("site_class", "reference")}
    site = SiteFigures(hook_name="a", fve=0.5, mean_norm=1.0, unit=1.0, n_exclusive=1, n_confirmed=1, n_shrunk=0,
                       n_decoupled=0, n_unmeasured=0)  # fmt: skip
    report = CrosscoderReport(
        sites=(site, replace(site, hook_name="b")), n_shared=1, n_between=1, n_zero=0, mean_cosine_shared=0.5,
        n_tokens=10, thresholds=CrosscoderThresholds(), latents=LatentSites(**tensors), notes=("a",),
    )  # fmt: skip
    return [kept(lambda folder: report.save(folder / "crosscoder.json"))]


def _read_crosscoder_report(folder: Path) -> None:
    report = CrosscoderReport.load(folder / "crosscoder.json")
    str(report)
    report._repr_html_()


READERS: dict[str, Reader] = {
    "dictionary": Reader(_dictionaries, _read_dictionary),
    "cache": Reader(_caches, _read_cache, _forge_cache),
    "checkpoint": Reader(
        lambda: [kept(_write_checkpoints)], _read_checkpoints, _forge_checkpoints, may_write=frozenset({"latest"})
    ),
    "run": Reader(
        lambda: [kept(_write_run)],
        _read_run,
        _forge_run,
        may_write=frozenset({"/.lock", "metrics.jsonl", "run.json", "config.yaml", CHECKSUMS, "latest"}),
    ),
    "config": Reader(_configs, _read_config),
    "env": Reader(_environments, _read_environment),
    "text": Reader(_texts, _read_texts),
    "packed": Reader(_packed, _read_packed, _forge_packed),
    "parquet": Reader(_tables, _read_texts),
    "dataset": Reader(_saved_datasets, _read_saved_dataset),
    "npy": Reader(_arrays, _read_array),
    "drrik": Reader(_drrik, _read_drrik),
    "features": Reader(_features, _read_features),
    "crosscoder_report": Reader(_crosscoder_reports, _read_crosscoder_report),
    "session": Reader(_sessions, _read_session, _forge_session),
}


def _with_listed_files(seeds: Callable[[], list[Case]]) -> Callable[[], list[Case]]:
    """``seeds``, whose files must all be in the library's list of what is used of files."""

    def listed() -> list[Case]:
        cases, listed_files = seeds(), (*FILES, *registry.wanted_files())
        for name in sorted({Path(file).name for case in cases for file in case}):
            assert any(fnmatch.fnmatch(name, each) for each in listed_files), (
                f"{name} is not in the list of core/foreign.py, nor among the files of a format"
            )
        return cases

    return listed


READERS = {name: replace(each, seeds=_with_listed_files(each.seeds)) for name, each in READERS.items()}
