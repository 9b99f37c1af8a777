"""Rows made in low precision or compiled: close to eager float32, recorded, and part of what a run is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_tiny import random_split, tiny_llama

from monosema.core.errors import ConfigError, DataError
from monosema.data import ActivationStream
from monosema.data.rebuild import recorded_options
from monosema.models import LanguageModel

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")


def stream(model: LanguageModel, **options: Any) -> ActivationStream:
    return ActivationStream(model, random_split(), SITES, 10, chunk_contexts=6, model_batch_size=2, **options)


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_rows_in_low_precision_are_float32s_up_to_rounding(model: LanguageModel, autocast: str) -> None:
    exact, low = torch.cat(list(stream(model))), torch.cat(list(stream(model, autocast=autocast)))
    assert low.dtype == torch.float32
    distance = float((low - exact).norm() / exact.norm())
    assert 1e-5 < distance < 2e-2
    assert not torch.is_autocast_enabled("cpu")


def test_several_models_run_in_low_precision_together(model: LanguageModel) -> None:
    both = {"a": model, "b": tiny_llama()}
    names = [f"{key}:blocks.0.hook_resid_post" for key in both]
    made = [
        torch.cat(list(ActivationStream(both, random_split(), names, 10, chunk_contexts=6, autocast=autocast)))
        for autocast in (None, "bfloat16")
    ]
    for site in made[0].split(16, dim=1), made[1].split(16, dim=1):
        assert torch.equal(*site)  # equal models, the same tokens
    assert not torch.equal(*made)


def test_it_is_recorded_and_a_resumed_run_must_agree(model: LanguageModel) -> None:
    low = stream(model, autocast="bfloat16")
    next(low)
    record = {**low.record(), "tokens": {"source": "a text"}}
    assert recorded_options(record)["stream"]["autocast"] == "bfloat16"
    assert "compile" not in recorded_options(record)["stream"]
    for other in ("float16", None):
        with pytest.raises(DataError, match=f"autocast: 'bfloat16' -> {other!r}"):
            stream(model, autocast=other).load_state_dict(low.state_dict())
    old = {**low.state_dict()}
    old["identity"] = {k: v for k, v in old["identity"].items() if k not in ("autocast", "compile")}
    stream(model).load_state_dict(old)  # a state of before there was a choice
    again = stream(model, autocast="bfloat16")
    again.load_state_dict(low.state_dict())
    assert torch.equal(next(again), next(low))


def test_only_float32_models_are_cast() -> None:
    with pytest.raises(ConfigError, match="bfloat16 weights: load it with dtype='float32'"):
        stream(tiny_llama(torch.bfloat16), autocast="float16")


def test_compiled_blocks_are_used_for_the_sites_of_the_stream(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled, without waiting for a compiler: ``tests/models/test_compiled.py`` compiles."""
    run: list[str] = []

    def watched(function: Any, **_: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            run.append(type(function.__self__).__name__)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    expected = torch.cat(list(stream(model)))
    assert torch.equal(torch.cat(list(stream(model, compile="default"))), expected)
    assert set(run) == {"LlamaDecoderLayer", "LlamaAttention", "LlamaMLP"}  # block 1 holds a site inside
    with pytest.raises(ConfigError, match="reduce-overhead"):
        stream(model, compile="reduce-overhead")
