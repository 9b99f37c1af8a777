"""``monosema benchmark``: every benchmark by name, on a dictionary that was saved."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import byte_tokenizer

from monosema import hub
from monosema.cli.main import main
from monosema.coders import SAE, TopK
from monosema.core.errors import ConfigError, UnknownNameError
from monosema.evaluation.benchmarks import (
    AbsorptionReport,
    BenchmarkReport,
    MetaConfig,
    ProbingReport,
)
from monosema.models import load_model
from monosema.runs.benchmarking import BENCHMARKS, DataOptions, run_benchmark

SITE = "blocks.1.hook_resid_post"
OPTIONS = {
    "truth": ["--n-rows", "500"],
    "probe": ["--ks", "1", "2", "--min-examples", "4", "--context-size", "24", "--text-column", "line"],
    "absorption": ["--template", "the {word}", "--least-probe-f1", "0", "--most-main-latents", "2"],
    "tpp": ["--n-latents", "2", "5", "--context-size", "24"],
    "scr": ["--n-latents", "2", "--seed", "3"],
    "ravel": ["--n-epochs", "1", "--n-latents", "2", "--keep-error", "--test-fraction", "0.5"],
    "meta": ["--n-steps", "2", "--seeds", "5"],
}


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained dictionary of the tiny model, which records what it reads."""
    coder = SAE(16, 48, activation=TopK(k=4))
    metadata = {"model": {"source": str(model_folder)}, "tokens": {"source": "stdlib"}, "hook_names": [SITE]}
    coder.bind(SITE, SITE, metadata)
    return hub.save(coder, tmp_path_factory.mktemp("benchmark") / "coder")


@pytest.fixture(scope="module")
def files(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data for each benchmark that reads some."""
    draw, into = random.Random(0), tmp_path_factory.mktemp("data")

    def text(kind: int) -> str:
        return "".join(draw.choices("abcdefgh " if kind else "pqrstuvw ", k=20))

    def lines(name: str, records: list[dict[str, Any]]) -> Path:
        path = into / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return path

    (into / "features.yaml").write_text("d_in: 16\nn_features: 24\nl0: 2.0\n")
    model = load_model(str(model_folder))
    templates = {"first": "a {word}", "second": "it is the {word}"}
    attributes: list[dict[str, Any]] = [{"attribute": a, "template": t} for a, t in templates.items()]
    for entity in "abcdefghijklmnopqrstuvwxyz":
        answers = {}
        for attribute, template in templates.items():
            ids = [0, *byte_tokenizer()(template.replace("{word}", entity))["input_ids"]]
            with torch.no_grad():
                answers[attribute] = byte_tokenizer().decode([int(model(torch.tensor([ids]))[0, -1].argmax())])
        if all(answer.isascii() and len(answer) == 1 for answer in answers.values()):
            attributes.append({"entity": entity, "answers": answers})
    return {
        "truth": into / "features.yaml",
        "probe": lines("probe", [{"line": text(i % 2), "label": i % 2} for i in range(80)]),
        "absorption": lines("words", [{"word": draw.choice("ab") + text(1)[:5].strip() + str(i)} for i in range(60)]),
        "tpp": lines("tpp", [{"text": text(i % 2), "label": "ab"[i % 2]} for i in range(60)]),
        "scr": lines("scr", [{"text": text(i % 2), "target": i % 2 == 0, "spurious": i % 4 < 2} for i in range(60)]),
        "ravel": lines("ravel", attributes),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_its_report_is_read_back(
    name: str, folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(files[name])] if name in files else []
    out = ["--quiet", "--out", str(tmp_path / "report.json")]
    layout = [] if name == "truth" else ["--saebench", str(tmp_path / "saebench.json")]
    assert main(["benchmark", name, str(folder), *data, *OPTIONS[name], *out, *layout]) == 0
    kinds = {each.benchmark: each for each in BenchmarkReport.__subclasses__()}
    report = kinds[name].load(tmp_path / "report.json")
    assert capsys.readouterr().out == f"{report}\n"
    assert report.d_sae == 48
    if layout:
        written = json.loads((tmp_path / "saebench.json").read_text())
        assert written["sae_cfg_dict"]["d_sae"] == 48 and written["sae_lens_id"] == "coder"


def test_options_reach_the_benchmark(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["absorption", str(folder), "--data", str(files["absorption"]), "--quiet", "--out", str(out)]
    assert main(["benchmark", *arguments, *OPTIONS["absorption"], "--seed", "9"]) == 0
    report = AbsorptionReport.load(out)
    assert (report.config.seed, report.config.most_main_latents, report.config.least_probe_f1) == (9, 2, 0)
    assert {each.parent for each in report.parents} <= {"a", "b"}


def test_python_labels_are_the_default_of_probing(folder: Path) -> None:
    options = DataOptions(labels="python")
    config = BENCHMARKS["probe"].config(
        ks=(1,), n_train=100, n_test=40, n_tokens=60_000, context_size=24, min_examples=2
    )
    report = run_benchmark("probe", hub.load(folder), config, options, progress=False)
    assert isinstance(report, ProbingReport) and report.unit == "token"
    assert "operator" in [task.label for task in report.tasks]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prob", "{folder}"], "unknown benchmark 'prob'; did you mean 'probe'?"),
        (["tpp", "{folder}"], "the benchmark tpp needs a file; give data"),
        (["probe", "{folder}", "--labels", "pyton"], "unknown set of labels 'pyton'; did you mean 'python'?"),
        (["probe", "{folder}", "--labels", "python", "--data", "x.jsonl"], "give one of them"),
        (["probe", "{folder}", "--text-column", "x"], "columns are those of a file of texts"),
        (["tpp", "{folder}", "--data", "{probe}"], "line 1: no column 'text' among 'line', 'label'"),
        (["tpp", "{folder}", "--data", "x.jsonl"], "cannot read x.jsonl"),
        (["truth", "{folder}", "--data", "{probe}"], "known features are read from .yaml, .json or .safetensors"),
        (["absorption", "{folder}", "--data", "{absorption}", "--template", "word"], "needs {word} exactly once"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, folder: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    places = {f"{{{name}}}": str(path) for name, path in {"folder": folder, **files}.items()}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["benchmark", *given, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_options_that_a_benchmark_does_not_take_are_refused(folder: Path) -> None:
    coder = hub.load(folder)
    with pytest.raises(ConfigError, match="the benchmark meta takes no data options, got data"):
        run_benchmark("meta", coder, MetaConfig(), DataOptions(data="x"))
    with pytest.raises(ConfigError, match="the benchmark scr takes data, context_size, got template"):
        run_benchmark("scr", coder, None, DataOptions(data="x", template="{word}"))
    with pytest.raises(UnknownNameError, match="unknown benchmark 'scrr'"):
        run_benchmark("scrr", coder)


def test_help_lists_the_benchmarks_and_the_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", *arguments])
        assert stop.value.code == code
        printed = capsys.readouterr()
        assert all(f"  {name} " in (printed.err if code else printed.out) for name in BENCHMARKS)
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "absorption", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--template" in shown and "--least-probe-f1" in shown
    with pytest.raises(SystemExit):
        main(["benchmark", "meta"])
    assert "name the folder" in capsys.readouterr().err
