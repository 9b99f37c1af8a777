"""Runs in low precision: recorded, resumed to the bit, evaluated in float32."""

from pathlib import Path

import pytest
import torch
import yaml

import monosema as ms
from monosema.training import Callback, Trainer

LOW = "bfloat16"


class StopAt(Callback):
    def on_step(self, trainer: Trainer) -> None:
        if trainer.step_number == 7:
            raise RuntimeError("crash")


def train(model: ms.LanguageModel, tokens: ms.Tokens, out: Path, *callbacks: Callback) -> ms.TrainingResult:
    stream = ms.ActivationStream(model, tokens, "blocks.1.hook_resid_post", 100, autocast=LOW)
    config = ms.TrainingConfig(tokens=1000, checkpoint_every=5, log_every=5, autocast=LOW)
    coder = ms.SAE(d_in=16, d_sae=48, activation=ms.BatchTopK(k=4))
    return ms.train(coder, stream, config, out=out, progress=False, callbacks=callbacks)


def test_a_run_in_low_precision_is_recorded_and_resumes_to_the_bit(
    model: ms.LanguageModel, tokens: ms.Tokens, tmp_path: Path
) -> None:
    whole = train(model, tokens, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(model, tokens, tmp_path / "cut", StopAt())
    resumed = train(model, tokens, tmp_path / "cut")
    assert resumed.resumed_from == 5
    for name, value in whole.coder.state_dict().items():
        assert torch.equal(resumed.coder.state_dict()[name], value), name
    assert whole.report is not None
    assert resumed.report == whole.report
    assert whole.coder.dtype == torch.float32
    config = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert (config["stream"]["autocast"], config["training"]["autocast"]) == (LOW, LOW)
    assert (config["stream"]["compile"], config["training"]["compile"]) == (None, None)
    assert ms.open_session(tmp_path / "whole").stream.autocast == LOW
