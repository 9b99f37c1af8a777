"""Folders that an earlier version saved are opened and read as they were then."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import golden_fixtures as made
import pytest

import monosema as ms
from monosema.core.config import from_plain
from monosema.core.plain import dump_json, parse_json
from monosema.runs.describe import describe
from monosema.runs.held_config import held_config

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED: dict[str, Any] = parse_json((FIXTURES / "expected.json").read_text(encoding="utf-8"))
FLOAT32, FLOAT64 = 1e-5, 1e-8


def assert_values(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> None:
    for name, wanted in expected.items():
        is_text = isinstance(wanted, str) or wanted is None
        assert found[name] == (wanted if is_text else pytest.approx(wanted, rel=tolerance, abs=tolerance)), name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures as the working directory: what was recorded is relative to it."""
    shutil.copytree(FIXTURES, tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path / "fixtures")
    return tmp_path / "fixtures"


@pytest.fixture(scope="module")
def model() -> ms.LanguageModel:
    return ms.load_model(FIXTURES / "model", dtype="float64", device="cpu")


def test_every_saved_folder_is_expected() -> None:
    folders = {path.name for path in FIXTURES.iterdir() if path.is_dir()}
    assert folders == {
        "cache",
        "cache_bfloat16",
        "cache_int8",
        "dictionaries",
        "features",
        "model",
        "reports",
        "run",
        "run_stopped",
        "sweep",
        "tokens",
    }
    assert {path.name for path in (FIXTURES / "dictionaries").iterdir()} == EXPECTED["dictionaries"].keys()
    layouts = {path.name for path in (FIXTURES / "dictionaries").rglob("*.safetensors")}
    assert layouts == {"sae_weights.safetensors", "monosema.safetensors"}


@pytest.mark.parametrize("name", sorted(EXPECTED["dictionaries"]))
def test_a_dictionary(name: str) -> None:
    assert_values(made.values_of(ms.load(FIXTURES / "dictionaries" / name)), EXPECTED["dictionaries"][name], FLOAT32)


@pytest.mark.parametrize("name", sorted(EXPECTED["dictionaries"]))
def test_a_dictionary_is_saved_and_read_again_as_it_was(name: str, tmp_path: Path) -> None:
    ms.save(ms.load(FIXTURES / "dictionaries" / name), tmp_path / name)
    assert_values(made.values_of(ms.load(tmp_path / name)), EXPECTED["dictionaries"][name], FLOAT32)


def test_a_run(model: ms.LanguageModel) -> None:
    """Its dictionary, the model, text and stream it records, and the figures of its report."""
    expected = EXPECTED["run"]
    session = ms.open_session(FIXTURES / "run", model=str(FIXTURES / "model"), text=str(FIXTURES / "corpus.txt"))
    assert_values(made.values_of(session.coder), {k: v for k, v in expected.items() if k != "report"}, FLOAT64)
    assert session.stream.batch_size == 32
    assert session.tokens.heldout.fingerprint == EXPECTED["tokens"]["heldout"]
    config = held_config(FIXTURES / "run")
    assert config is not None
    assert from_plain(ms.RunConfig, config).training.tokens == 12 * 32
    held = ms.Report.load(FIXTURES / "run" / "report.json")
    options = {"n_tokens": 240, "n_loss_tokens": 240, "ablation": "both"}
    fresh = ms.evaluate(session.coder, session.model, session.tokens, progress=False, **options)
    for report in (held, fresh):
        assert_values(report.to_dict(), expected["report"], 1e-6)


def test_a_run_that_was_stopped_goes_on(here: Path) -> None:
    expected = EXPECTED["run_stopped"]
    result = ms.train(
        made.fresh("crosscoder"),
        made.open_cache(),
        made.training(12),
        out="run_stopped",
        evaluation=made.EVALUATION,
        progress=False,
    )
    assert result.resumed_from == expected["step"]
    assert result.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    values = {name: value for name, value in expected.items() if name not in ("step", "loss")}
    assert_values(made.values_of(result.coder), values, FLOAT64)


def test_a_sweep() -> None:
    for name, expected in EXPECTED["sweep"].items():
        assert_values(made.values_of(ms.load(FIXTURES / "sweep", name)), expected, FLOAT64)
        config = held_config(FIXTURES / "sweep" / name)
        assert config is not None
        assert from_plain(ms.RunConfig, config).training.tokens == 8 * 32


@pytest.mark.parametrize("name", ["cache", "cache_bfloat16", "cache_int8"])
def test_a_cache(name: str) -> None:
    rows = next(iter(made.open_cache(str(FIXTURES / name)))).double()
    found = {"n": len(rows), "sums": rows.sum(1).tolist(), "magnitudes": rows.abs().sum(1).tolist()}
    assert_values(found, EXPECTED[name], FLOAT32)


def test_packed_tokens(model: ms.LanguageModel) -> None:
    tokens = ms.load_tokens(FIXTURES / "tokens", model.tokenizer)
    assert {"train": tokens.train.fingerprint, "heldout": tokens.heldout.fingerprint} == EXPECTED["tokens"]


def test_a_feature_store() -> None:
    store = ms.FeatureStore.load(FIXTURES / "features")
    found = {"n_fired": len(store), "maxima": store.numbers.maximum.double().tolist()}
    assert_values(found, EXPECTED["features"], FLOAT64)
    assert store[store.order("maximum")[0]].contexts


def test_reports() -> None:
    text = (FIXTURES / "reports" / "crosscoder.json").read_text(encoding="utf-8")
    report = ms.CrosscoderReport.load(FIXTURES / "reports" / "crosscoder.json")
    written = parse_json(text)
    for name, value in parse_json(dump_json(report.to_dict())).items():
        assert value == written[name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("run", "SAE, 24 latents, TopK(k=3)"),
        ("run_stopped", "not finished"),
        ("sweep", "2 of them with a finished dictionary"),
        ("cache", "float32"),
        ("tokens", "corpus.txt"),
        ("features", "best of each latent"),
    ],
)
def test_each_kind_of_folder_is_described(name: str, says: str) -> None:
    assert says in describe(FIXTURES / name)
