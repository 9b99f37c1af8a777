import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from page_source import embedded
from tiny_language import byte_tokenizer

import monosema as ms
from monosema.cli.main import main
from monosema.metrics import fve


@pytest.fixture(scope="module")
def run_folder(model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main([*train_arguments(model_folder, text_file), "--out", str(out)]) == 0
    return out


def train_arguments(model_folder: Path, text_file: Path) -> list[str]:
    options = {
        "model.source": model_folder,
        "tokens.source": text_file,
        "tokens.context-size": 32,
        "tokens.heldout-fraction": 0.1,
        "stream.hook-names": "blocks.1.hook_resid_post",
        "stream.batch-size": 64,
        "coder.d-sae": 48,
        "coder.activation": "TopK",
        "coder.activation.k": 4,
        "training.tokens": 2000,
        "training.log-every": 10,
    }
    return ["train", "--quiet", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def test_train_prints_the_report_and_where_the_dictionary_is(
    run_folder: Path, model_folder: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train_arguments(model_folder, text_file), "--out", str(run_folder)]) == 0  # finished: it is read
    printed = capsys.readouterr().out
    assert "ce_loss_score" in printed
    assert printed.rstrip().endswith(f"dictionary: {run_folder}/coder")


def test_a_runs_config_trains_the_same_dictionary_again(run_folder: Path, tmp_path: Path) -> None:
    config = str(run_folder / "config.yaml")
    assert main(["train", "--quiet", "--config", config, "--out", str(tmp_path / "again")]) == 0
    name = Path("coder") / "sae_weights.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (run_folder / name).read_bytes()


def test_evaluate_repeats_the_report(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_folder), "--quiet", "--out", str(tmp_path / "report.json")]) == 0
    assert "fve" in capsys.readouterr().out
    again, first = (json.loads(p.read_text()) for p in (tmp_path / "report.json", run_folder / "report.json"))
    assert again == first
    few = ["evaluate", "--quiet", "--n-tokens", "320", str(run_folder), "--out", str(tmp_path / "few.json")]
    assert main(few) == 0
    assert json.loads((tmp_path / "few.json").read_text())["n_tokens"] <= 320


def test_evaluate_uses_the_options_that_the_run_recorded(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["evaluation"] = {"n_tokens": 640, "n_loss_tokens": 320, "ablation": "mean"}
    shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "report.json"

    def evaluated(*options: str) -> tuple[dict, str]:
        assert main(["evaluate", str(tmp_path / "run"), *options, "--out", str(out)]) == 0
        return json.loads(out.read_text()), capsys.readouterr().err

    report, said = evaluated()
    assert (report["ablation"], report["ablations"].keys()) == ("mean", {"mean"})
    assert 320 < report["n_tokens"] <= 640 and report["n_predicted_tokens"] <= 320
    assert "options of the run: n_tokens 640, n_loss_tokens 320, ablation mean" in said
    report, said = evaluated("--n-tokens", "3.2e2", "--ablation", "zero", "--log-level", "info")
    assert report["n_tokens"] <= 320 and report["ablation"] == "zero"
    assert "options of the run: n_loss_tokens 320;" in said
    monkeypatch.setenv("MONOSEMA_EVALUATION__N_TOKENS", "320")
    assert evaluated()[0]["n_tokens"] <= 320
    config["evaluation"]["n_tokens"] = "many"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "says evaluation.n_tokens = 'many', which is not taken from a file" in capsys.readouterr().err


def test_evaluate_prints_every_figure_when_asked(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_folder), "--quiet", "--n-tokens", "320"]) == 0
    short = capsys.readouterr().out
    assert main(["evaluate", str(run_folder), "--quiet", "--n-tokens", "320", "--full"]) == 0
    full = capsys.readouterr().out
    assert len(short.splitlines()) < 16 < len(full.splitlines())
    assert "max_decoder_cosine" in full and "max_decoder_cosine" not in short
    assert main(["evaluate", str(run_folder), "--quiet", "--crosscoder", "--full"]) == 2
    assert "--full is for the figures of dictionaries by themselves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-tokens", "0"], "--n-tokens must be at least 1, or None, got 0"),
        (["--n-tokens=-3"], "--n-tokens must be at least 1, or None, got -3"),
        (["--n-tokens", "many"], "n-tokens"),
        (["--n-loss-tokens", "0"], "--n-loss-tokens must be at least 1"),
        (["--ablation", "men"], "men"),
        (["--text", "SHORT"], "fills no context of 32 tokens; give more text or a smaller context_size"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (
            ["--model", "WIDER"],
            "d_in is 16, but 'blocks.1.hook_resid_post' of .* is 24 wide; was it trained on another",
        ),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    options: list[str], message: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "SHORT").write_text("too short")
    if "WIDER" in options:
        save_wider_model(tmp_path / "WIDER")
    try:
        status = main(["evaluate", str(run_folder), "--quiet", *options, "--out", str(tmp_path / "report.json")])
    except SystemExit as stop:  # the parser's own refusals
        status = int(stop.code or 0)
    assert status == 2
    written = capsys.readouterr().err
    assert re.search(message, " ".join(written.split()))
    assert "Traceback" not in written
    assert not (tmp_path / "report.json").exists()


def save_wider_model(folder: Path) -> None:
    """Another model, with another tokenizer: of 24 dimensions and 100 tokens more."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(100)])
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(vocab_size=357, num_key_value_heads=1, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_evaluate_writes_saebenchs_layout(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "core.json"
    assert main(["evaluate", str(run_folder), "--quiet", "--n-tokens", "320", "--saebench", str(out)]) == 0
    layout = json.loads(out.read_text())
    assert (layout["eval_type_id"], layout["sae_lens_id"]) == ("core", str(run_folder))
    assert layout["eval_result_metrics"]["sparsity"]["l0"] == layout["eval_result_unstructured"]["l0"]
    assert len(layout["eval_result_details"]) == layout["sae_cfg_dict"]["d_sae"]


def test_evaluate_refuses_to_compare_the_sites_of_what_has_one(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "needs a crosscoder over at least two sites": [str(run_folder), "--crosscoder"],
        "leave out --ablation": [str(run_folder), "--crosscoder", "--ablation", "mean"],
        "leave out --replace": ["--replace", str(run_folder), "--crosscoder"],
        "leave out --crosscoder and --replace": [str(run_folder), "--crosscoder", "--saebench", "core.json"],
        "add --crosscoder": [str(run_folder), "--site-units", "raw"],
    }
    for message, arguments in cases.items():
        assert main(["evaluate", "--quiet", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_features_writes_a_page_and_prints_a_latent(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["features", str(run_folder), "--quiet", "--out", str(page)]) == 0
    assert "<html" in page.read_text(encoding="utf-8")
    header, _ = embedded(page)
    report = json.loads((run_folder / "report.json").read_text())
    assert header["n_tokens"] == report["n_tokens"]  # as many as the run was evaluated on
    shown = dict(header["figures"])
    assert [*shown] == ["architecture", "k", "run", "trained on", "FVE", "CE loss score", "L0", "dead fraction"]
    assert (shown["architecture"], shown["k"], shown["run"]) == ("TopK SAE", "4", run_folder.name)
    assert shown["trained on"] == f"{json.loads((run_folder / 'summary.json').read_text())['tokens']:,} tokens"
    assert 1 - header["n_alive"] / header["d_sae"] == report["dead_fraction"]
    assert main(["features", str(run_folder), "--quiet", "--latent", "3"]) == 0
    assert "3" in capsys.readouterr().out


def test_features_that_were_kept_label_a_reading(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    reading = ["read", "the fox", "--dictionary", str(run_folder), "--features", str(kept), "--quiet"]
    assert main(reading) == 2
    assert (
        f"{kept} holds no features (features.json is missing); `monosema features RUN --save" in capsys.readouterr().err
    )
    few = ["features", str(run_folder), "--tokens", "640", "--quiet", "--out", str(tmp_path / "page.html")]
    assert main([*few, "--save", str(kept)]) == 0
    assert f"saved features: {kept}" in capsys.readouterr().out
    store = ms.FeatureStore.load(kept)
    assert store.numbers.n_tokens <= 640
    out = tmp_path / "reading.json"
    assert main([*reading, "--out", str(out)]) == 0
    labels = [latent["label"] for token in json.loads(out.read_text())["tokens"] for latent in token["latents"]]
    assert any(labels)
    (tmp_path / "page.html").unlink()
    assert main([*few, "--save", str(run_folder)]) == 2  # before anything is collected
    assert "holds no features; choose another place" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_read_prints_the_latents_of_each_token(
    run_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "page.html", tmp_path / "reading.json"]
    given = ["read", "the fox", "--dictionary", str(run_folder), "--n-latents", "2", "--quiet"]
    assert main([*given, "--html", str(files[0]), "--out", str(files[1])]) == 0
    coder, model = ms.load(run_folder), ms.load_model(str(model_folder))
    reading = ms.read_prompt(model, coder, "the fox", n_latents=2)
    assert str(reading) in capsys.readouterr().out
    assert reading._repr_html_() in files[0].read_text(encoding="utf-8")
    assert json.loads(files[1].read_text()) == json.loads(json.dumps(reading.to_dict()))
    assert [token.text for token in reading.tokens] == ["<|endoftext|>", *"the fox"]
    assert main(["read", "", "--dictionary", str(run_folder), "--quiet"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_what_a_run_gives_is_shown_in_a_few_lines(run_folder: Path, model_folder: Path, text_file: Path) -> None:
    session = ms.open_session(run_folder)
    result = ms.train(session.coder, torch.randn(256, 16), ms.TrainingConfig(tokens=64), progress=False, batch_size=64)
    many = ms.evaluate_many({"a<b": session.coder}, activations=torch.randn(200, 16), weights=False)
    for shown in (session, session.stream, session.tokens, session.tokens.heldout, result, many):
        assert len(repr(shown).splitlines()) <= 12
        assert " at 0x" not in repr(shown)
        assert shown._repr_html_().startswith("<table>")
    assert "a&lt;b" in many._repr_html_()
    assert isinstance(many, dict)
    assert repr(session.stream).startswith(
        "ActivationStream: batches of 64 rows\n  reads   blocks.1.hook_resid_post (16)"
    )
    assert "trained on  64 tokens" in repr(result)


def test_inspect_says_what_is_there(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_folder), "--quiet"]) == 0
    printed = capsys.readouterr().out
    for part in ("48 latents", "TopK(k=4)", "blocks.1.hook_resid_post", "fve", "step_"):
        assert part in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere/at-all"], "nowhere/at-all"),
        (["evaluate", "."], "holds no dictionary"),
        (["evaluate", "/nowhere/at-all"], "there is no folder /nowhere/at-all; give the path of a run folder"),
        (["train", "--config", "missing.yaml", "--out", "x"], "cannot read missing.yaml"),
        (["train", "--model.source", "bultin", "--out", "x"], "did you mean 'builtin'?"),
        (["train", "--tokens.source", "sdtlib", "--out", "x"], "did you mean 'stdlib'?"),
        (
            ["train", "--coder.d-sae", "8", "--coder.activation.k", "32", "--out", "x"],
            "exceeds --coder.d-sae=8; lower k",
        ),
        (["train", "--coder.causal", "--out", "x"], "two or more sites in --stream.hook-names"),
        (["trian"], "did you mean 'train'?"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    written = capsys.readouterr().err
    assert message in written
    assert "Traceback" not in written
    assert not Path("x").exists()


def test_an_unknown_hook_name_offers_near_ones(
    model_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*train_arguments(model_folder, text_file), "--out", str(tmp_path / "run")]
    arguments[arguments.index("blocks.1.hook_resid_post")] = "blocks.1.hook_resid_pots"
    assert main(arguments) == 2
    assert "blocks.1.hook_resid_post" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dictionary_over_two_models_is_trained_evaluated_and_shown(
    model_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "run.yaml", str(tmp_path / "run")
    config.write_text(f"other_models: {{chat: {{source: '{model_folder}', dtype: bfloat16}}}}")
    arguments = train_arguments(model_folder, text_file)
    place = arguments.index("blocks.1.hook_resid_post")
    arguments[place : place + 1] = ["base:blocks.1.hook_resid_post", "chat:blocks.1.hook_resid_post"]
    assert main([*arguments, "--config", str(config), "--evaluation.n-tokens", "640", "--out", out]) == 0
    capsys.readouterr()
    assert main(["evaluate", out, "--quiet", "--n-tokens", "640", "--out", str(tmp_path / "report.json")]) == 0
    printed = capsys.readouterr().out
    assert "ce_loss_score of base" in printed
    assert "ce_loss_score of chat" in printed
    again, first = (json.loads(p.read_text()) for p in (tmp_path / "report.json", tmp_path / "run" / "report.json"))
    assert again == first
    sites = ["evaluate", out, "--quiet", "--crosscoder", "--n-tokens", "640", "--out", str(tmp_path / "sites.json")]
    assert main([*sites, "--site-units", "mean_norm"]) == 0
    assert "n_confirmed" in capsys.readouterr().out
    found = ms.CrosscoderReport.load(tmp_path / "sites.json")
    session = ms.open_session(out)
    same = ms.evaluate_crosscoder(
        session.coder, session.models, session.tokens, n_tokens=640, site_units="mean_norm", progress=False
    )
    assert found.to_dict() == same.to_dict()
    torch.testing.assert_close(found.latents.nu_error, same.latents.nu_error, equal_nan=True)
    assert main(["features", out, "--quiet"]) == 0
    assert main(["inspect", out, "--quiet"]) == 0
    assert "ce_loss_score of chat" in capsys.readouterr().out
    assert main(["evaluate", out, "--quiet", "--model", str(model_folder)]) == 2
    assert "give their sources by name" in capsys.readouterr().err
    assert main(["evaluate", out, "--quiet", "--model", "chat=/nowhere/at-all"]) == 2
    assert "/nowhere/at-all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mlp_runs(model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A transcoder for each MLP of the tiny model, whose input is scaled in training, and one for all."""
    out = tmp_path_factory.mktemp("mlps")
    sites = [(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in (0, 1)]
    chosen = {"first": sites[:1], "second": sites[1:], "both": sites}
    for name, pairs in chosen.items():
        arguments = train_arguments(model_folder, text_file)
        place = arguments.index("blocks.1.hook_resid_post")
        arguments[place : place + 1] = [*(read for read, _ in pairs), "--stream.targets", *(to for _, to in pairs)]
        scaling = ["--training.input-scaling", "expected_norm" if name == "first" else "whitening"]
        assert main([*arguments, *scaling, "--evaluation.n-tokens", "640", "--out", str(out / name)]) == 0
    return {name: str(out / name) for name in chosen}


def test_evaluate_compares_several_dictionaries(
    mlp_runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = list(mlp_runs.values())
    written = [f"--{kind}={tmp_path / 'all'}.{kind}" for kind in ("csv", "html")] + ["--out", f"{tmp_path}/all.json"]
    assert main(["evaluate", *folders, "--quiet", "--n-tokens", "2048", *written]) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("  ce_loss_score") for line in printed.splitlines()) == 3
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == folders
    together = json.loads((tmp_path / "all.json").read_text())
    assert list(together) == folders
    assert [line.split(",")[0] for line in (tmp_path / "all.csv").read_text().splitlines()[1:]] == folders
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert all(folder in page for folder in folders)
    alone = ["--out", str(tmp_path / "one.json"), "--latents-csv", str(tmp_path / "latents.csv")]
    assert main(["evaluate", folders[1], "--quiet", "--n-tokens", "2048", *alone]) == 0
    assert json.loads((tmp_path / "one.json").read_text()) == together[folders[1]]
    assert len((tmp_path / "latents.csv").read_text().splitlines()) == 1 + together[folders[1]]["d_sae"]
    assert main(["evaluate", folders[0], folders[0], "--quiet"]) == 2
    assert main(["evaluate", *folders, "--quiet", "--saebench", str(tmp_path / "x.json")]) == 2
    for option in ("--csv", "--html"):
        assert main(["evaluate", "--replace", *folders[:2], "--quiet", option, str(tmp_path / "x")]) == 2
        assert main(["evaluate", "--crosscoder", folders[0], "--quiet", option, str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
    refused = capsys.readouterr().err
    assert "is named twice" in refused
    assert refused.count("leave out --crosscoder") == 5


@pytest.fixture
def sweep(run_folder: Path, tmp_path: Path) -> Path:
    """Two runs that have finished, and one that has not."""
    for name in ("a", "b", "begun"):
        left_out = (".lock", "coder", "checkpoints") if name == "begun" else (".lock",)
        shutil.copytree(run_folder, tmp_path / "sweep" / name, ignore=shutil.ignore_patterns(*left_out))
    return tmp_path / "sweep"


def test_evaluate_takes_the_finished_runs_of_a_sweep(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "reports.json"
    assert main(["evaluate", str(sweep), "--n-tokens", "320", "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())) == [str(sweep / "a"), str(sweep / "b")]
    assert f"{sweep} is a sweep: evaluating a, b, without 1 run that did not finish; --name" in capsys.readouterr().err
    assert main(["evaluate", str(sweep), "--name", "b", "--n-tokens", "320", "--quiet", "--out", str(out)]) == 0
    assert "fve" in json.loads(out.read_text())
    assert main(["evaluate", str(sweep), "--crosscoder"]) == 2
    assert "name one of a sweep with --name" in capsys.readouterr().err


def test_verbs_of_one_dictionary_name_those_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", str(sweep), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"{sweep} is a sweep: it holds the runs a, b, begun. Give one by name, name='a' (--name a)" in said
    assert f"`monosema evaluate {sweep}` evaluates all that have finished" in said


@pytest.mark.parametrize("names", [["first", "second"], ["both"]])
def test_evaluate_puts_dictionaries_in_the_place_of_mlps(
    names: list[str], mlp_runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, out = [mlp_runs[name] for name in names], tmp_path / "report.json"
    assert main(["evaluate", "--replace", *folders, "--quiet", "--out", str(out), "--n-tokens", "2048"]) == 0
    assert "2 sites of" in capsys.readouterr().out
    report = json.loads(out.read_text())
    session = ms.open_session(folders[0])
    coders = [ms.load(folder) for folder in folders]
    contexts = session.tokens.heldout
    contexts = contexts.contexts[torch.arange(64) * contexts.n_contexts // 64].long()
    special = contexts == 0
    model = session.model.hf
    written = ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    clean_outputs = list(session.model.capture(contexts, written).values())

    outputs: list[torch.Tensor] = []
    mlps = [block.mlp for block in model.model.layers]
    own = [mlp.forward for mlp in mlps]
    latents: list[torch.Tensor] = []

    def replaced(layer: int, x: torch.Tensor) -> torch.Tensor:
        if len(coders) == 2:
            new = coders[layer](x)
        else:
            part = coders[0].parts[layer].coder
            latents.append(part.encode(x))
            new = latents[layer] @ part.W_dec[:, :16] + coders[0].b_dec[16 * layer :][:16]
            if layer == 1:
                new = new + latents[0] @ coders[0].parts[0].coder.W_dec[:, 16:]
        outputs.append(new)
        return torch.where(special.unsqueeze(-1), own[layer](x), new)

    for layer, mlp in enumerate(mlps):
        mlp.forward = functools.partial(replaced, layer)
    with torch.no_grad():
        logits = model(input_ids=contexts, use_cache=False).logits
    for mlp in mlps:
        del mlp.forward
    counted = ~special[:, :-1] & ~special[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][counted], contexts[:, 1:][counted])
    assert report["ce_replaced"] == pytest.approx(loss.item(), rel=2e-6)
    for layer, clean, new in zip(report["layers"], clean_outputs, outputs, strict=True):
        assert layer["fve"] == pytest.approx(fve(clean[~special], new[~special]), abs=1e-5)
    assert report["overlap"] == "none"
    assert [layer["hook_name_out"] for layer in report["layers"]] == written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replace", "first", "first"], "two coders write 'blocks.0.hook_mlp_out'"),
        (["--replace", "first", "--ablation", "mean"], "leave out --ablation"),
        (["--replace", "first", "run"], "was trained on the model builtin"),
    ],
)
def test_what_cannot_be_put_in_place_is_refused(
    arguments: list[str],
    message: str,
    mlp_runs: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = ms.load(mlp_runs["second"])
    other.metadata["model"]["source"] = "builtin"
    ms.save(other, tmp_path / "other")
    named = {**mlp_runs, "run": str(tmp_path / "other")}
    assert main(["evaluate", "--quiet", *(named.get(each, each) for each in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_wants_one_folder_or_several_to_replace(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a", "--replace", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *arguments])
        assert stop.value.code == 2
        assert "or several after --replace" in capsys.readouterr().err


def with_sites(arguments: list[str], reads: list[str], targets: list[str]) -> list[str]:
    place = arguments.index("blocks.1.hook_resid_post")
    return [*arguments[:place], *reads, *(["--stream.targets", *targets] if targets else []), *arguments[place + 1 :]]


@pytest.fixture(scope="module")
def starts(model_folder: Path, text_file: Path, mlp_runs: dict[str, str], run_folder: Path) -> dict[str, tuple]:
    """A saved run of every variant: its folder and the arguments of a run at the same sites."""
    out = Path(mlp_runs["first"]).parent
    base = [*train_arguments(model_folder, text_file), "--evaluation.n-tokens", "640"]
    mlp_in, mlp_out = ([f"blocks.{layer}.{site}" for layer in (0, 1)] for site in ("mlp.hook_in", "hook_mlp_out"))
    residual = [f"blocks.{layer}.hook_resid_post" for layer in (0, 1)]
    crosscoder = with_sites(base, residual, [])
    assert main([*crosscoder, "--out", str(out / "crosscoder")]) == 0
    return {
        "sae": (str(run_folder), base),
        "transcoder": (mlp_runs["first"], with_sites(base, mlp_in[:1], mlp_out[:1])),
        "crosscoder": (str(out / "crosscoder"), crosscoder),
        "clt": (mlp_runs["both"], with_sites(base, mlp_in, mlp_out)),
    }


@pytest.mark.parametrize("variant", ["sae", "transcoder", "crosscoder", "clt"])
def test_a_run_starts_from_a_saved_dictionary(variant: str, starts: dict[str, tuple], tmp_path: Path) -> None:
    folder, arguments = starts[variant]
    one_tiny_step = ["--coder.start-from", folder, "--training.tokens", "64", "--training.lr", "1e-12"]
    assert main([*arguments, *one_tiny_step, "--out", str(tmp_path / "run")]) == 0
    first, again = ms.load(folder), ms.load(tmp_path / "run")
    x = torch.randn(50, first.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x), first(x), rtol=1e-3, atol=1e-4)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["coder"]["start_from"] == folder
    assert (
        main(["train", "--quiet", "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "b")]) == 0
    )
    for name, value in ms.load(tmp_path / "b").state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert main([*arguments, *one_tiny_step, "--out", str(tmp_path / "run")]) == 0  # finished: it is read


@pytest.mark.parametrize("variant", ["sae", "transcoder", "crosscoder", "clt"])
@pytest.mark.parametrize("weights", ["scale", "decoder"])
def test_a_saved_dictionary_is_fine_tuned_alone(
    variant: str, weights: str, starts: dict[str, tuple], tmp_path: Path
) -> None:
    folder, arguments = starts[variant]
    arguments = arguments.copy()
    arguments[arguments.index("--training.tokens") + 1] = "0"
    options = {"coder": {"start_from": folder}, "training": {"finetuning": {"tokens": 640, "weights": weights}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    assert main([*arguments, "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tokens"] == 640
    first, again = (ms.load(each) for each in (folder, tmp_path / "run"))
    moved = False
    for mine, theirs in zip(again.parts, first.parts, strict=True):
        a, b = mine.coder, theirs.coder
        cosine = torch.nn.functional.cosine_similarity(a.W_dec, b.W_dec, dim=1)
        encoders = torch.nn.functional.cosine_similarity(a.W_enc_rows, b.W_enc_rows, dim=1)
        assert bool((encoders > 1 - 1e-5).all())
        assert bool((cosine > 1 - 1e-5).all()) == (weights == "scale")
        x = torch.randn(50, a.d_in, generator=torch.Generator().manual_seed(0))
        moved |= bool((a(x) - b(x)).norm() > 1e-4 * b(x).norm())
    assert moved


def test_what_does_not_fit_the_saved_dictionary_is_refused(
    starts: dict[str, tuple], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae, sae_arguments = starts["sae"]
    other_site = [each.replace("blocks.1.hook_resid_post", "blocks.0.hook_resid_post") for each in sae_arguments]
    cases = [
        (other_site, sae, [], "the run's sites are blocks.0.hook_resid_post; set --stream.hook-names"),
        (starts["crosscoder"][1], sae, [], "sites read [16] wide; the run's sites"),
        (starts["transcoder"][1], sae, [], "reconstructs what it reads"),
        (starts["clt"][1], starts["crosscoder"][0], [], "reconstructs what it reads"),
        (sae_arguments, starts["transcoder"][0], [], "writes other sites than it reads"),
        (sae_arguments, "nowhere/at-all", [], "nowhere/at-all"),
        (sae_arguments, sae, ["--coder.d-sae", "64"], "--coder.d-sae=64 contradicts --coder.start-from"),
        (sae_arguments, sae, ["--coder.activation.k", "5"], "--coder.activation=TopK(k=5"),
    ]
    for arguments, folder, more, message in cases:
        out = str(tmp_path / "run")
        assert main([*arguments, "--coder.start-from", folder, *more, "--out", out]) == 2, message
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    few = ["--training.tokens", "64", "--coder.start-at-other-sites"]
    assert main([*other_site, "--coder.start-from", sae, *few, "--out", str(tmp_path / "moved")]) == 0
    assert ms.load(tmp_path / "moved").hook_name == "blocks.0.hook_resid_post"
    config = str(tmp_path / "moved" / "config.yaml")
    assert main(["train", "--quiet", "--config", config, "--out", str(tmp_path / "again")]) == 0
