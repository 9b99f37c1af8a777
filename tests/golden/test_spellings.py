"""Spellings of this version are read by every later one, also where it writes others.

So no test here looks for a spelling in what the reader gives: it compares what was read with other things read, or
looks for the value alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import monosema as ms
from monosema.cli.main import main
from monosema.core.config import from_plain, to_plain
from monosema.core.plain import parse_json
from monosema.data.rebuild import recorded_options, tokens_again
from monosema.runs.held_config import held_config

FIXTURES = Path(__file__).parent / "fixtures"
MIXTURE = "tokens: {mixture: {a: {source: stdlib}}%s}"
AUXK = "training: {revive: {kind: AuxK%s}}"


def read(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The options that ``train`` comes to, as this version writes them."""
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, "--print-config"])
    assert stop.value.code == 0
    return leaves(yaml.safe_load(capsys.readouterr().out))


def leaves(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize(
    ("file", "option", "variable", "flags"),
    [
        (MIXTURE, "when_dry: go_on", "TOKENS__WHEN_DRY=go_on", ["--tokens.when-dry", "go_on"]),
        (AUXK, "normalised: true", "TRAINING__REVIVE__NORMALISED=true", ["--training.revive.normalised"]),
    ],
)
def test_options_in_files_the_environment_and_flags(
    file: str,
    option: str,
    variable: str,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("without.yaml").write_text(file % "")
    Path("with.yaml").write_text(file % f", {option}")
    plain, chosen = (read(["--config", name], capsys) for name in ("without.yaml", "with.yaml"))
    assert plain.keys() == chosen.keys()
    assert len([name for name in plain if plain[name] != chosen[name]]) == 1
    assert read(["--config", "without.yaml", *flags], capsys) == chosen
    name, value = variable.split("=")
    monkeypatch.setenv(f"MONOSEMA_{name}", value)
    assert read(["--config", "without.yaml"], capsys) == chosen


def test_a_saved_config() -> None:
    """A run's config.yaml holds both spellings; each value is told from another one, and is the same written again."""
    config = held_config(FIXTURES / "run")
    assert config is not None
    tokens, revive = config["tokens"], config["training"]["revive"]
    assert (tokens["when_dry"], revive["normalised"]) == ("stop", False)
    other_text = {**config, "tokens": {**tokens, "when_dry": "go_on"}}
    other_term = {**config, "training": {**config["training"], "revive": {**revive, "normalised": True}}}
    held, *others = (from_plain(ms.RunConfig, each) for each in (config, other_text, other_term))
    assert held not in others and others[0] != others[1]
    for each in (held, *others):
        assert from_plain(ms.RunConfig, to_plain(each)) == each


def test_a_mixture_in_a_dictionarys_metadata(tmp_path: Path) -> None:
    """``stop`` and ``go_on`` are followed as they were where the text is read again."""
    model = ms.load_model(FIXTURES / "model", dtype="float32", device="cpu")
    words = (FIXTURES / "corpus.txt").read_text(encoding="utf-8").split()
    sizes = {"short": 200, "long": 1000}
    for name, size in sizes.items():
        (tmp_path / f"{name}.txt").write_text(" ".join(words[:size]), encoding="utf-8")
    parts = {name: {"source": str(tmp_path / f"{name}.txt"), "weight": 1.0} for name in sizes}
    found = []
    for when_dry in ("stop", "go_on"):
        record = {"source": "mixture", "mixture": parts, "when_dry": when_dry, "context_size": 8}
        metadata = {"model": {"name": "tiny", "source": str(FIXTURES / "model")}, "tokens": record}
        options = recorded_options(metadata)["tokens"]
        found.append(tokens_again(options, model))
    stopped, went_on = (each.train.n_contexts + each.heldout.n_contexts for each in found)
    assert 0 < stopped < went_on


def test_the_column_of_token_ids_in_a_dictionarys_metadata(tmp_path: Path) -> None:
    coder = ms.SAE(d_in=4, d_sae=8, activation=ms.ReLU())
    coder.metadata["tokens"] = {"source": "rows", "pretokenised_column": "its own column"}
    ms.save(coder, tmp_path)
    assert "its own column" in ms.load(tmp_path).metadata["tokens"].values()


def test_a_figure_of_a_saved_report() -> None:
    file = FIXTURES / "run" / "report.json"
    held = parse_json(file.read_text(encoding="utf-8"))
    assert held["fve_centred"] in ms.Report.load(file).to_dict().values()
    other = ms.Report.from_dict({**held, "fve_centred": 0.125})
    assert other != ms.Report.load(file)
    assert 0.125 in other.to_dict().values()
