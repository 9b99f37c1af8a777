import logging
from pathlib import Path

import pytest
import torch

import monosema as ms
from monosema.core.config import from_yaml
from monosema.core.errors import ConfigError, FileError
from monosema.runs.describe import describe
from monosema.runs.session import build_coder

SITE = "blocks.0.hook_mlp_out"


@pytest.fixture(scope="module")
def run_folder(model: ms.LanguageModel, tokens: ms.Tokens, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("session") / "run"
    stream = ms.ActivationStream(model, tokens, SITE, 64, seed=5)
    coder = ms.SAE(16, expansion_factor=2, activation=ms.TopK(k=3))
    ms.train(coder, stream, ms.TrainingConfig(tokens=640, log_every=5), out=out)
    return out


def test_a_session_has_the_same_stream_and_the_same_heldout_text(run_folder: Path, tokens: ms.Tokens) -> None:
    session = ms.open_session(run_folder)
    assert session.tokens.heldout.fingerprint == tokens.heldout.fingerprint
    assert session.stream.layout.hook_names == (SITE,)
    recorded = dict(session.coder.metadata)
    assert session.stream.record()["seed"] == recorded["seed"] == 5
    first = next(session.stream)
    again = next(ms.open_session(run_folder).stream)
    assert torch.equal(first, again)


def test_what_is_overridden_is_listed(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="monosema"):
        session = ms.open_session(run_folder, batch_size=32)
    assert session.stream.batch_size == 32
    assert "stream.batch_size overridden: 64 -> 32" in caplog.text
    with pytest.raises(ConfigError, match="unknown option 'batchsize'"):
        ms.open_session(run_folder, batchsize=32)


def test_a_stream_from_a_coder(run_folder: Path, model: ms.LanguageModel) -> None:
    coder = ms.load(run_folder)
    stream = ms.ActivationStream.from_coder(coder)
    assert stream.layout.hook_names == (SITE,)
    shared = ms.ActivationStream.from_coder(coder, model=model, batch_size=16)
    assert shared.model is model
    assert shared.batch_size == 16


def test_a_dictionary_without_a_record_says_so(tmp_path: Path) -> None:
    coder = ms.SAE(8, 16, activation=ms.ReLU())
    ms.save(coder, tmp_path / "bare")
    with pytest.raises(FileError, match="does not record the model"):
        ms.open_session(tmp_path / "bare")
    with pytest.raises(FileError, match="does not record"):
        ms.ActivationStream.from_coder(ms.load(tmp_path / "bare"))


def test_describe_names_what_is_there(run_folder: Path) -> None:
    text = describe(run_folder)
    for part in ("SAE, 32 latents, TopK(k=3)", "d_in 16, d_out 16", SITE, "fve", "step_000000010"):
        assert part in text


@pytest.mark.parametrize("encoder_init", ["auto", "transpose", "independent"])
@pytest.mark.parametrize("variant", ["sae", "crosscoder", "transcoder"])
def test_starting_weights_come_from_the_config(
    model: ms.LanguageModel, tokens: ms.Tokens, encoder_init: str, variant: str
) -> None:
    sites = {
        "sae": ([SITE], None),
        "crosscoder": ([SITE, "blocks.1.hook_mlp_out"], None),
        "transcoder": (["blocks.0.mlp.hook_in"], [SITE]),
    }
    text = f"coder: {{d_sae: 48, decoder_init_norm: 0.3, encoder_init: {encoder_init}}}"
    reads, targets = sites[variant]
    coder = build_coder(from_yaml(ms.RunConfig, text), ms.ActivationStream(model, tokens, reads, 64, targets=targets))
    cosine = torch.nn.functional.cosine_similarity(coder.W_enc_rows, coder.W_dec, dim=1)
    by_default = encoder_init == "auto" and variant != "transcoder"
    assert bool((cosine > 1 - 1e-5).all()) == (encoder_init == "transpose" or by_default)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.full((48,), 0.3))


def test_a_cross_layer_transcoder_refuses_other_starting_weights(model: ms.LanguageModel, tokens: ms.Tokens) -> None:
    reads, targets = ([f"blocks.{layer}.{name}" for layer in (0, 1)] for name in ("mlp.hook_in", "hook_mlp_out"))
    stream = ms.ActivationStream(model, tokens, reads, 64, targets=targets)
    for option in ("encoder_init: transpose", "decoder_init: orthogonal", "decoder_init_norm: 0.5"):
        with pytest.raises(ConfigError, match=r"start at random, .*leave out coder\.decoder_init"):
            build_coder(from_yaml(ms.RunConfig, f"coder: {{d_sae: 48, {option}}}"), stream)
