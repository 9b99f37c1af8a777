import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from monosema.cli.main import VERBS, main
from monosema.cli.options import load_libraries
from monosema.core.config import from_plain
from monosema.core.errors import ConfigError, UnknownNameError
from monosema.training.config import TrainingConfig
from monosema.training.resample_presets import RESAMPLE_PRESETS


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments, "--print-config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_precedence_command_line_environment_dotenv_file_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["tokens", "log_every", "keep_checkpoints", "eval_every", "seed"]
    (tmp_path / "run.yaml").write_text("training: {" + ", ".join(f"{o}: 1" for o in options[:4]) + "}")
    (tmp_path / ".env").write_text("".join(f"MONOSEMA_TRAINING__{o.upper()}=2\n" for o in options[:3]))
    for option in options[:2]:
        monkeypatch.setenv(f"MONOSEMA_TRAINING__{option.upper()}", "3")
    training = printed_config(["--config", "run.yaml", "--training.tokens", "4"], capsys)["training"]
    assert [training[option] for option in options] == [4, 3, 2, 1, 0]


def test_kinds_are_chosen_by_name_and_take_their_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(["--coder.activation", "TopK", "--coder.activation.k", "16"], capsys)
    chosen = config["coder"]["activation"]
    assert (chosen["kind"], chosen["k"], chosen["inference"]) == ("TopK", 16, "topk"), "not BatchTopK's rule"
    config = printed_config(["--coder.activation", "JumpReLU", "--training.revive", "none"], capsys)
    assert config["coder"]["activation"]["kind"] == "JumpReLU"
    assert config["training"]["revive"] is None
    config = printed_config(["--training.sparsity", "L1", "--training.sparsity.target-l0", "20"], capsys)
    assert config["training"]["sparsity"]["target_l0"] == 20


@pytest.mark.parametrize("given", ["topk", "top_k", "TopK", "TOPK"])
def test_kinds_are_named_in_any_case(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"kind": "TopK", "k": 32, "inference": "topk", "weight_by_decoder_norm": True, "threshold_rate": 0.05}
    assert printed_config(["--coder.activation", given], capsys)["coder"]["activation"] == asked
    assert printed_config(["--coder.activation", f"{given}(16)"], capsys)["coder"]["activation"]["k"] == 16
    (tmp_path / "run.yaml").write_text(f"coder: {{activation: {given}}}")
    assert printed_config(["--config", "run.yaml"], capsys)["coder"]["activation"] == asked
    options = ["--config", "run.yaml", "--coder.activation.k", "8"]
    assert printed_config(options, capsys)["coder"]["activation"]["k"] == 8
    monkeypatch.setenv("MONOSEMA_CODER__ACTIVATION__K", "4")
    assert printed_config(["--config", "run.yaml"], capsys)["coder"]["activation"]["k"] == 4
    monkeypatch.delenv("MONOSEMA_CODER__ACTIVATION__K")
    monkeypatch.setenv("MONOSEMA_CODER__ACTIVATION", f"{given}:2")
    assert printed_config([], capsys)["coder"]["activation"]["k"] == 2


def test_a_kind_that_does_not_exist_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--coder.activation", "topl", "--print-config"])
    assert "unknown kind 'topl'; did you mean TopK?" in capsys.readouterr().err


def test_whole_numbers_in_scientific_notation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("{training: {tokens: 1e6, log_every: 1e1}, coder: {d_sae: 1.6e4}}")
    (tmp_path / "run.json").write_text('{"training": {"tokens": 1e6}}')
    monkeypatch.setenv("MONOSEMA_TRAINING__LOG_EVERY", "2e1")
    config = printed_config(["--config", "run.yaml", "--stream.batch-size", "1e3", "--training.seed", "2e0"], capsys)
    found = [config["training"][name] for name in ("tokens", "log_every", "seed")]
    found += [config["coder"]["d_sae"], config["stream"]["batch_size"]]
    assert found == [1_000_000, 20, 2, 16_000, 1000] and all(type(each) is int for each in found)
    assert printed_config(["--config", "run.json"], capsys)["training"]["tokens"] == 1_000_000
    with pytest.raises(SystemExit):
        main(["train", "--training.tokens", "1.5e0", "--print-config"])
    assert "expected a whole number, got '1.5e0'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["features", "x", "--tokens", "1.5e0"])
    assert "expected a whole number (1000 or 1e3), got '1.5e0'" in capsys.readouterr().err
    monkeypatch.setenv("MONOSEMA_TRAINING__LOG_EVERY", "1.5")
    assert main(["train", "--print-config"]) == 2
    assert "training.log_every: expected a whole number, got 1.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("MONOSEMA_TRAINING_TOKENS", "did you mean MONOSEMA_TRAINING__TOKENS?"),
        ("MONOSEMA_LOG_LEVLS", "matches no option"),
        ("MONOSEMA_SAE__L1_COEFFICIENT", "here it is training.sparsity"),
    ],
)
def test_variables_that_match_nothing_are_errors(
    name: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text(f"{name}=5\n")
    assert main(["train", "--print-config"]) == 2
    said = capsys.readouterr().err
    assert f"{name} matches no option" in said and answer in said
    (tmp_path / ".env").unlink()
    monkeypatch.setenv(name, "5")
    for verb in ("cache", "pretokenize", "evaluate"):
        assert main([verb, "--print-config"]) == 2
        assert answer in capsys.readouterr().err


def test_a_variable_of_one_verb_is_passed_over_by_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MONOSEMA_TRITON", "0")
    monkeypatch.setenv("MONOSEMA_TRAINING__TOKENS", "5")
    monkeypatch.setenv("MONOSEMA_TOKENIZER__SOURCE", "x")
    monkeypatch.setenv("MONOSEMA_EVALUATION__N_TOKENS", "3e2")
    for verb, found in {"train": "tokens: 5", "pretokenize": "source: x", "evaluate": "n_tokens: 300"}.items():
        with pytest.raises(SystemExit) as stop:
            main([verb, "--print-config"])
        assert stop.value.code == 0 and found in capsys.readouterr().out


def test_how_documents_become_contexts_is_said_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("tokens: {packing: {preset: sae_lens, separator: none}}")
    options = ["--tokens.packing.begin-context", "none", "--tokens.packing.begin-document", "3"]
    options += ["--tokens.positions.stop", "-5", "--tokens.no-attend-across-documents"]
    tokens = printed_config(["--config", "run.yaml", *options], capsys)["tokens"]
    found = {name: value for name, value in tokens["packing"].items() if value is not None}
    assert found == {"preset": "sae_lens", "separator": "none", "begin_context": "none", "begin_document": 3}
    assert tokens["positions"] == {"start": None, "stop": -5, "step": None}
    assert tokens["attend_across_documents"] is False


def test_a_kind_is_completed_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("training: {tokens: 0, finetuning: {weights: scale}}")
    config = printed_config(["--config", "run.yaml", "--training.finetuning.tokens", "640"], capsys)
    assert config["training"]["finetuning"] == {"tokens": 640, "weights": "scale", "lr": None}
    (tmp_path / "run.yaml").write_text("training: {finetuning: {tokens: 640}}")
    config = printed_config(["--config", "run.yaml", "--training.finetuning", "none"], capsys)
    assert config["training"]["finetuning"] is None
    (tmp_path / "run.yaml").write_text("training: {levels: {kind: Matryoshka, weights: [1, 2]}}")
    fractions = ["--training.levels.fractions", "0.25", "0.75"]
    levels = printed_config(["--config", "run.yaml", *fractions], capsys)["training"]["levels"]
    assert levels == {"kind": "Matryoshka", "widths": None, "fractions": [0.25, 0.75], "weights": [1, 2]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.levels", "Matryoshka"], "give --training.levels.widths or --training.levels.fractions"),
        (["--training.levels", "Matryoshka", "--training.levels.fractions", "0.5", "0.6"], "must sum to 1, got 1.1"),
        (["--training.levels.fractions", "0.5", "0.5"], "add --training.levels Matryoshka or HierarchicalTopK"),
        (["--training.sparsity.target-l0", "4"], "add --training.sparsity L1 or Lp"),
        (["--training.finetuning", "none", "--training.finetuning.tokens", "9"], "add --training.finetuning"),
    ],
)
def test_a_kind_that_is_not_complete_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--print-config"]) == 2
    assert message in capsys.readouterr().err


def test_resampling_presets_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("training: {revive: {kind: Resample, preset: drrik, scale: 0.5}}")
    from_file = printed_config(["--config", "run.yaml", "--training.revive.every-tokens", "5000"], capsys)
    by_flag = printed_config(["--training.revive", "Resample", "--training.revive.preset", "anthropic"], capsys)
    resolved = [from_plain(TrainingConfig, each["training"]).revive.rule for each in (from_file, by_flag)]
    assert (resolved[0].every_tokens, resolved[0].scale, resolved[0].n_candidates) == (5000, 0.5, 256)
    assert resolved[1] == RESAMPLE_PRESETS["anthropic"]


def test_what_is_printed_is_read_back_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = printed_config(["--coder.activation", "Gated", "--training.lr", "0.002"], capsys)
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    assert printed_config(["--config", "first.yaml"], capsys) == first


def test_unknown_options_are_errors_with_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text("training: {tokns: 5}")
    assert main(["train", "--config", "run.yaml"]) == 2
    assert "unknown option 'training.tokns'; did you mean 'tokens'?" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("batch_size: 5")
    assert main(["train", "--config", "run.yaml"]) == 2
    assert "unknown option 'batch_size'; did you mean 'stream.batch_size'?" in capsys.readouterr().err
    monkeypatch.setenv("MONOSEMA_TRAINIG__TOKENS", "5")
    assert main(["train"]) == 2
    assert "MONOSEMA_TRAINIG__TOKENS matches no option; did you mean MONOSEMA_TRAINING__TOKENS?" in (
        capsys.readouterr().err
    )
    assert issubclass(UnknownNameError, ValueError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--training_tokens", "here it is training.tokens"),
        ("--training.l1-coefficient", "here it is training.sparsity (L1(coefficient=))"),
        ("--model_name", "here it is model.source"),
        ("--model.name", "here it is model.source"),
        ("--d-sae", "did you mean --coder.d-sae?"),
        ("--training.target-l0", "here it is training.sparsity"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(
    flag: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", flag, "5", "--out", "somewhere"]) == 2
    assert answer in capsys.readouterr().err


def test_options_of_a_kind_are_no_names_of_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--coder.activation", "ReLU", "--training.sparsity", "L1", "--training.sparsity.target-l0", "9"]
    assert printed_config(given, capsys)["training"]["sparsity"]["target_l0"] == 9


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"monosema {verb}" in capsys.readouterr().out


def test_the_multiple_of_the_median_norm_is_a_number_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    from monosema.cli.evaluate import _multiple, run

    assert [_multiple(text) for text in ("recorded", "none", "10")] == ["recorded", None, 10.0]
    with pytest.raises(SystemExit):
        main(["evaluate", "somewhere", "--outlier-norm-multiple", "ten"])
    assert "--outlier-norm-multiple" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--replace measures rows of any norm"):
        run(["--replace", "somewhere", "--outlier-norm-multiple", "5"])


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def without(names: set[str], code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=names) + code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_configs_and_help_need_no_torch() -> None:
    code = """
import importlib, monosema
from monosema.cli.main import main
for room in ("coders", "training", "runs"):
    __import__("types")
import monosema.core.config, monosema.core.errors
assert main(["--help"]) == 0 and main(["--version"]) == 0
"""
    assert "usage: monosema VERB" in without({"torch", "transformers", "numpy"}, code)


def test_config_modules_import_without_torch() -> None:
    code = """
import importlib.util, pathlib
import monosema
root = pathlib.Path(monosema.__file__).parent
files = sorted(root.glob("*/config.py"))
assert len(files) >= 4, files
import monosema.coders.config, monosema.training.config, monosema.runs.config, monosema.core.config
import monosema as ms
print(ms.BatchTopK(k=32), ms.TrainingConfig().tokens)
"""
    assert "BatchTopK(k=32" in without({"torch", "transformers"}, code)


def test_a_line_is_said_before_what_is_slow_to_import(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr("importlib.import_module", lambda name: said.append([name, *caplog.messages]))
    with caplog.at_level("INFO", logger="monosema"):
        load_libraries("torch")
    assert said == [["torch", "loading libraries ..."]]


def test_every_verb_says_a_line_before_it_imports_torch() -> None:
    code = """
import sys
from monosema.cli import options

def first(module):
    print(module, [name for name in ("torch", "transformers") if name in sys.modules])
    raise SystemExit(0)

options.load_libraries = first
from monosema.cli.main import main

for line in (
    "demo", "train --out x", "pretokenize --out x", "plan", "cache", "cache shuffle x --out y",
    "cache export x --out y", "cache push x y", "evaluate x", "features x", "inspect x",
):
    try:
        main(line.split())
    except SystemExit:
        pass
"""
    shown = without(set(), code).splitlines()
    assert len(shown) == 11 and all(line.endswith(" []") for line in shown), shown


def test_the_terminals_help_imports_nothing_heavy() -> None:
    code = "import sys; from monosema.cli.main import main; main(['--help'])\n"
    code += "print([name for name in ('torch', 'transformers', 'tyro', 'numpy', 'yaml') if name in sys.modules])"
    assert without(set(), code).rstrip().endswith("[]")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "monosema", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "train" in done.stdout
