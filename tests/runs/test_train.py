import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import monosema as ms
from monosema.core.errors import ConfigError, DataError, FileError, ShapeError
from monosema.data import ArrayRows
from monosema.runs.config import EvaluationOptions
from monosema.runs.folder import RunFolder
from monosema.training import Callback, CheckpointPlan, RunInterrupted, Trainer

SITE = "blocks.1.hook_resid_post"
CONFIG = ms.TrainingConfig(tokens=4000, checkpoint_every=10, log_every=5)


def make_stream(model: ms.LanguageModel, tokens: ms.Tokens, **options: object) -> ms.ActivationStream:
    return ms.ActivationStream(model, tokens, SITE, **{"batch_size": 100, **options})


def make_coder(d_in: int = 16) -> ms.SparseCoder:
    return ms.SAE(d_in=d_in, d_sae=48, activation=ms.BatchTopK(k=4))


class StopAt(Callback):
    """Raises after a step, as a crash in a user's callback would."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step_number == self.step:
            raise RuntimeError("crash")


@pytest.fixture
def run(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> ms.TrainingResult:
    return ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=tmp_path / "run")


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "coder" / "sae_weights.safetensors").read_bytes()


def test_the_run_folder_holds_what_the_design_says(run: ms.TrainingResult) -> None:
    assert run.folder is not None
    names = {path.name for path in run.folder.iterdir()} - {".lock"}
    summary = {"summary.json", "summary.txt"}
    assert (
        names
        == {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "coder", "report.json", "checksums.json"}
        | summary
    )
    report = json.loads((run.folder / "report.json").read_text())
    assert {"fve", "ce_loss_score", "l0", "dead_fraction"} <= set(report)
    assert run.report is not None
    assert report["fve"] == run.report.fve
    assert [line["step"] for line in logged(run.folder)] == list(range(5, 41, 5))
    assert sorted(path.name for path in (run.folder / "checkpoints").glob("step_*")) == [
        "step_000000030",
        "step_000000040",
    ]
    assert (run.folder / "checkpoints" / "latest").read_text().strip() == "step_000000040"
    assert {path.name for path in (run.folder / "coder").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }


def test_the_coder_returned_is_the_one_saved_and_the_one_evaluated(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    assert run.folder is not None
    again = ms.load(run.folder)
    assert torch.equal(again.W_enc, run.coder.W_enc)
    assert again.config == run.coder.config
    report = ms.evaluate(again, model, tokens, progress=False)
    assert run.report is not None
    assert report.to_dict() == run.report.to_dict()
    assert report.overlap == "none"


def test_every_checkpoint_is_a_loadable_dictionary(run: ms.TrainingResult) -> None:
    assert run.folder is not None
    coder = ms.load(run.folder / "checkpoints" / "step_000000030")
    assert coder.hook_name == SITE
    assert coder.metadata["log10_density"].shape == (48,)


def test_training_is_the_same_with_and_without_a_folder(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    result = ms.train(make_coder(), make_stream(model, tokens), CONFIG, evaluation=False)
    assert result.folder is None
    assert torch.equal(result.coder.W_dec, run.coder.W_dec)


@pytest.mark.parametrize("step", [1, 10, 17, 39])
def test_a_crashed_run_resumes_to_the_same_bits(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "crashed"
    with pytest.raises(RuntimeError, match="crash"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out, callbacks=[StopAt(step)])
    result = ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out)
    assert result.resumed_from == (step - 1) // 10 * 10
    assert run.folder is not None
    assert weights(out) == weights(run.folder)
    assert (out / "metrics.jsonl").read_text() == (run.folder / "metrics.jsonl").read_text()


def test_a_stopped_run_says_so_and_resumes_where_it_stopped(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    import signal

    def stop(trainer: Trainer) -> None:
        if trainer.step_number == 13:
            signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "stopped"
    with pytest.raises(RunInterrupted, match="SIGTERM after step 13 of 40"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out, on_step=stop)
    with pytest.raises(FileError, match=r"is a run that has not finished.* name='latest' \(--name latest\); there are"):
        ms.load(out)
    assert ms.load(out, "latest").d_sae == make_coder().d_sae
    result = ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out)
    assert result.resumed_from == 13
    assert run.folder is not None
    assert weights(out) == weights(run.folder)


def test_a_finished_run_is_read_not_repeated(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    assert run.folder is not None
    before = (run.folder / "coder" / "sae_weights.safetensors").stat().st_mtime_ns
    again = ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=run.folder)
    assert again.resumed_from == 40
    assert (run.folder / "coder" / "sae_weights.safetensors").stat().st_mtime_ns == before
    assert again.report == run.report
    assert again.metrics == run.metrics


def test_a_folder_of_another_run_is_refused_and_left_alone(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    assert run.folder is not None
    (run.folder / ".lock").unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    other = ms.TrainingConfig(tokens=4000, checkpoint_every=10, log_every=5, lr=0.001)
    with pytest.raises(ConfigError, match=r"training.lr: 'auto' -> 0.001") as error:
        ms.train(make_coder(), make_stream(model, tokens, seed=3), other, out=run.folder)
    assert "stream.seed: 0 -> 3" in str(error.value)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_options_that_change_nothing_may_change(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    config = ms.TrainingConfig(tokens=4000, checkpoint_every=20, log_every=1)
    assert ms.train(make_coder(), make_stream(model, tokens), config, out=run.folder).resumed_from == 40


def test_a_folder_with_other_things_in_it_is_refused(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"not empty and holds no run \(found thesis.txt\)"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_of_several_runs_none_begins_where_one_is_refused(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        ms.train({"first": make_coder(), "second": make_coder()}, make_stream(model, tokens), CONFIG, out=tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "second/thesis.txt"
    ]
    assert not (tmp_path / "first").exists()


def test_two_processes_cannot_share_a_folder(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    import yaml

    assert run.folder is not None
    plain = yaml.safe_load((run.folder / "config.yaml").read_text())
    with RunFolder(run.folder, plain, CheckpointPlan(n_steps=40)), pytest.raises(FileError, match="another process"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=run.folder)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    run: ms.TrainingResult,
    model: ms.LanguageModel,
    tokens: ms.Tokens,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "damaged"
    with pytest.raises(RuntimeError, match="crash"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out, callbacks=[StopAt(25)])
    file = out / "checkpoints" / "step_000000020" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    result = ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out)
    assert "step_000000020 is damaged" in caplog.text
    assert result.resumed_from == 10
    assert run.folder is not None
    assert weights(out) == weights(run.folder)


def test_a_full_disk_loses_nothing(
    run: ms.TrainingResult,
    model: ms.LanguageModel,
    tokens: ms.Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import errno

    from monosema.training import checkpoint

    original = checkpoint.write_json
    calls = []

    def full(path: Path, value: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, value)

    monkeypatch.setattr(checkpoint, "write_json", full)
    out = tmp_path / "full"
    with pytest.raises(FileError, match="No space left on device; free some space"):
        ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out)
    assert sorted(path.name for path in (out / "checkpoints").glob("*")) == [
        "latest",
        "step_000000010",
        "step_000000020",
    ]
    result = ms.train(make_coder(), make_stream(model, tokens), CONFIG, out=out)
    assert result.resumed_from == 20
    assert run.folder is not None
    assert weights(out) == weights(run.folder)


def test_a_read_only_place_is_named(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    stream = make_stream(model, tokens)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FileError, match=r"cannot write .*run: Permission denied"):
        ms.train(make_coder(), stream, CONFIG, out=tmp_path / "run")


def test_a_coder_of_another_width_is_refused_before_anything_is_written(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError, match=r"the coder reads 20 .* the source gives 16 \(blocks.1.hook_resid_post\)"):
        ms.train(make_coder(20), make_stream(model, tokens), CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_little_text_is_said_before_training(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the run wants 10,000,000 training tokens, the corpus gives .* set epochs="):
        ms.train(make_coder(), make_stream(model, tokens), ms.TrainingConfig(tokens=10_000_000), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_transcoder_trains_from_input_to_output(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path) -> None:
    stream = ms.ActivationStream(model, tokens, "blocks.1.mlp.hook_in", 100, targets="blocks.1.hook_mlp_out")
    coder = ms.Transcoder(16, 16, 48, activation=ms.TopK(k=4), skip=True)
    result = ms.train(coder, stream, CONFIG, out=tmp_path / "run")
    assert (result.coder.hook_name, result.coder.hook_name_out) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert result.coder.W_skip is not None
    assert float(result.coder.W_skip.abs().sum()) > 0
    assert result.report is not None
    assert result.report.fve > 0


@pytest.mark.parametrize(
    "activation", [ms.BatchTopK(k=4, threshold_rate=1e-6), ms.TopK(k=4), ms.JumpReLU(), ms.Gated(), ms.ReLU()]
)
def test_a_loaded_coder_goes_on_from_what_it_was(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path, activation: object
) -> None:
    first = ms.train(ms.SAE(16, 48, activation=activation), make_stream(model, tokens), CONFIG, out=tmp_path / "first")
    loaded = ms.load(tmp_path / "first")
    one_tiny_step = ms.TrainingConfig(tokens=100, lr=1e-12, calibrate_threshold=False)
    again = ms.train(loaded, make_stream(model, tokens, seed=1), one_tiny_step, evaluation=False)
    rows = next(make_stream(model, tokens))
    torch.testing.assert_close(again.coder.encode(rows), first.coder.encode(rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.coder(rows), first.coder(rows), rtol=1e-4, atol=1e-4)


def test_the_coder_handed_in_is_the_coder_trained(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens
) -> None:
    coder = make_coder()
    ms.train(coder, make_stream(model, tokens), CONFIG, evaluation=False)
    rows = next(make_stream(model, tokens))
    assert torch.equal(coder(rows), run.coder(rows))


@pytest.mark.parametrize("kind", ["tensor", "numpy", "npy", "loader", "iterable"])
def test_plain_rows_of_any_kind_train(kind: str, tmp_path: Path) -> None:
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    source: object = rows
    if kind in ("numpy", "npy"):
        source = rows.numpy()
    if kind == "npy":
        np.save(tmp_path / "rows.npy", rows.numpy())
        source = tmp_path / "rows.npy"
    if kind == "loader":
        source = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=64)
    if kind == "iterable":
        source = [rows[i : i + 37] for i in range(0, 1000, 37)]
    config = ms.TrainingConfig(tokens=1500, log_every=5)
    result = ms.train(make_coder(), source, config, out=tmp_path / "run", batch_size=100, epochs=2)
    assert result.n_steps == 15
    assert result.report is None
    assert ms.evaluate(result.coder, activations=rows).n_tokens == 1000


def test_an_arrays_validation_rows_are_what_it_is_evaluated_on(tmp_path: Path) -> None:
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    source = ArrayRows(rows, 100, epochs=2, validation_fraction=0.2)
    result = ms.train(make_coder(), source, ms.TrainingConfig(tokens=1500), out=tmp_path / "run")
    assert result.report is not None
    assert result.report.n_tokens == 200
    assert result.report.to_dict() == ms.evaluate(result.coder, activations=source.validation).to_dict()


def test_evaluation_while_training_is_logged_and_changes_nothing(
    run: ms.TrainingResult, model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    config = ms.TrainingConfig(tokens=4000, checkpoint_every=10, log_every=5, eval_every=20)
    result = ms.train(make_coder(), make_stream(model, tokens), config, out=tmp_path / "evaluated")
    assert torch.equal(result.coder.W_dec, run.coder.W_dec)
    steps = [line["step"] for line in logged(tmp_path / "evaluated") if "heldout/fve" in line]
    assert steps == [20, 40]


def test_a_whitened_run_is_saved_and_resumed(tmp_path: Path) -> None:
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)) @ torch.randn(16, 16)
    config = ms.TrainingConfig(tokens=1000, input_scaling="whitening", checkpoint_every=5)
    whole = ms.train(make_coder(), ArrayRows(rows, 100), config, out=tmp_path / "run", progress=False)
    again = ms.train(make_coder(), ArrayRows(rows, 100), config, out=tmp_path / "run", progress=False)
    assert torch.equal(whole.coder.W_dec, again.coder.W_dec)


def test_rows_set_aside_are_evaluated_while_training(tmp_path: Path) -> None:
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    source = ArrayRows(rows, 100, epochs=2, validation_fraction=0.2)
    config = ms.TrainingConfig(tokens=1000, eval_every=5)
    result = ms.train(make_coder(), source, config, out=tmp_path / "run", progress=False)
    lines = [line for line in logged(tmp_path / "run") if "heldout/fve" in line]
    assert [line["step"] for line in lines] == [5, 10]
    assert result.report is not None
    assert lines[-1]["heldout/fve"] == result.report.fve


def test_evaluation_while_training_needs_something_held_out(model: ms.LanguageModel, text_file: Path) -> None:
    config = ms.TrainingConfig(tokens=1000, eval_every=5)
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    everything = ms.load_tokens(str(text_file), model.tokenizer, 32, heldout_fraction=0.0)
    for source in (ArrayRows(rows, 100), iter([rows]), make_stream(model, everything)):
        with pytest.raises(ConfigError, match="eval_every needs held-out rows"):
            ms.train(make_coder(), source, config)


def test_every_name_a_run_logs_is_documented_and_the_report_is_logged_while_training(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    config = ms.TrainingConfig(tokens=1000, log_every=5, eval_every=5)
    options = EvaluationOptions(n_tokens=500)
    result = ms.train(make_coder(), make_stream(model, tokens), config, out=tmp_path / "run", evaluation=options)
    assert result.folder is not None
    assert result.report is not None
    lines = logged(result.folder)
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = text.split("## The training log")[1]
    names = set().union(*lines)
    assert {name for name in names if f"`{name}`" not in table} == set()
    heldout = [line for line in lines if "heldout/fve" in line]
    assert [line["step"] for line in heldout] == [5, 10]
    documented = set(re.findall(r"`(heldout/\w+)`", table))
    assert set(heldout[-1]) == {"step"} | documented
    for name in documented:  # after the last step, this is the report itself
        assert heldout[-1][name] == getattr(result.report, name.removeprefix("heldout/"))
