"""Runs on a cache: described so that they can be run again, and refused where the cache is another's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

import monosema as ms
from monosema.core.config import from_plain
from monosema.core.errors import ConfigError
from monosema.data import ActivationStream, write_cache
from monosema.runs.cache import default_folder
from monosema.runs.check import check_run
from monosema.runs.config import (
    CacheConfig,
    CacheSource,
    CoderOptions,
    ModelOptions,
    RunConfig,
    StreamOptions,
    TokenOptions,
)
from monosema.runs.launch import launch

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "c"
    model = ms.load_model("builtin")
    tokens = ms.load_tokens("stdlib", model.tokenizer, 32, max_documents=8)
    stream = ActivationStream(model, tokens, [SITE, "blocks.0.hook_resid_post"], batch_size=64, chunk_contexts=40)
    write_cache(stream, folder, tokens=4000, shard_bytes=200_000)
    return folder


def config_of(cache: Path, n_steps: int = 6, **changes: object) -> RunConfig:
    source = CacheSource(folder=str(cache), batch_size=64, hook_names=(SITE,), validation_fraction=0.2)
    training = ms.TrainingConfig(tokens=64 * n_steps, checkpoint_every=4, lr=0.003)
    coder = CoderOptions(d_sae=64, activation=ms.TopK(k=4))
    return RunConfig(cache=dataclasses.replace(source, **changes), coder=coder, training=training)


def weights(run: Path) -> torch.Tensor:
    return ms.load(run / "coder").W_dec


def test_a_run_is_described_run_again_and_resumed(cache: Path, tmp_path: Path) -> None:
    result = launch(config_of(cache), tmp_path / "run", progress=False)
    assert result.report is not None and result.report.n_tokens > 0 and result.coder.hook_name == SITE
    plain = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert set(plain) == {"cache", "coder", "training", "evaluation"}
    assert plain["cache"]["fingerprint"] == ms.ActivationCache(cache, 64).manifest.fingerprint
    again = launch(from_plain(RunConfig, plain), tmp_path / "again", progress=False)
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "again"))
    assert again.report is not None and again.report.fve == result.report.fve

    def stop(trainer: ms.Trainer) -> None:
        if trainer.step_number == 5:
            raise RuntimeError("stopped")

    source = ms.ActivationCache(cache, 64, hook_names=[SITE], validation_fraction=0.2)
    sae = ms.SAE(source.d_in, 64, activation=ms.TopK(k=4))
    with pytest.raises(RuntimeError, match="stopped"):
        ms.train(sae, source, config_of(cache).training, out=tmp_path / "third", on_step=stop, progress=False)
    resumed = launch(config_of(cache), tmp_path / "third", progress=False)
    assert resumed.resumed_from == 4 and torch.equal(weights(tmp_path / "third"), weights(tmp_path / "run"))


def test_another_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another cache than the one recorded"):
        launch(config_of(cache, fingerprint="0" * 16), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"made from 'builtin', not from 'gpt2'"):
        launch(config_of(cache, model="gpt2"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_dictionary_of_another_model_or_site_is_refused(cache: Path) -> None:
    source, config = ms.ActivationCache(cache, 64, hook_names=SITE), ms.TrainingConfig(tokens=64, lr=0.003)

    def coder(**changes: object) -> ms.SparseCoder:
        made = ms.SAE(source.d_in, 32, activation=ms.TopK(k=4))
        made.bind(SITE, SITE, {"model": {**source.record()["model"], **changes}})
        return made

    ms.train(coder(), source, config, progress=False)
    with pytest.raises(ConfigError, match=r"another model than the one .*name: org/chat -> builtin"):
        ms.train(coder(name="org/chat", fingerprint=None), source, config, progress=False)
    with pytest.raises(ConfigError, match=r"another model than the one .*fingerprint of the weights: 0+ -> "):
        ms.train(coder(fingerprint="0" * 16), source, config, progress=False)
    ms.train(coder(name="org/copy of the same weights"), source, config, progress=False)
    ms.train(coder(fingerprint="0" * 16), source, config, progress=False, start_at_other_sites=True)
    elsewhere = ms.SAE(source.d_in, 32, activation=ms.TopK(k=4), hook_name="blocks.3.hook_resid_post")
    with pytest.raises(ConfigError, match=r"the coder is for blocks\.3\.hook_resid_post"):
        ms.train(elsewhere, source, config, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": StreamOptions(seed=1)}, r"takes the place of stream"),
        ({"model": ModelOptions(source="gpt2")}, r"takes the place of model"),
        ({"tokens": TokenOptions(context_size=8)}, r"takes the place of tokens"),
        ({"cache": CacheSource(folder="c", epochs=0)}, "epochs"),
        ({"training": ms.TrainingConfig(eval_every=2)}, "cache.validation_fraction"),
    ],
)
def test_options_that_contradict_a_cache(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(dataclasses.replace(RunConfig(cache=CacheSource(folder="c")), **changes))


def test_where_a_cache_goes_by_default() -> None:
    config = CacheConfig(
        model=ModelOptions(source="org/model"),
        tokens=TokenOptions(source="org/text"),
        stream=StreamOptions(hook_names=("blocks.1.attn.hook_z[3]",)),
    )
    assert default_folder(config) == Path("activations/org_text/org_model/blocks.1.attn.hook_z_3")
    two = dataclasses.replace(config, stream=StreamOptions(hook_names=("a",), targets=("b",)))
    assert default_folder(two).name == "a+b"
