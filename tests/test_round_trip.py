"""Whatever a dictionary carries survives saving and loading, in SAELens' layout and in ours.

The tables below must give every field of every config another value than its default somewhere. A new field therefore
fails these tests until it has a case, and the case fails until the field is saved.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import monosema as ms
from monosema.coders import AbsTopK, CoderConfig, CrossLayerTranscoder, SparseCoder, StackConfig, TanhReLU
from monosema.coders.activations.registry import activation_kinds
from monosema.coders.config import ActivationConfig
from monosema.coders.site_transform import SiteTransform
from monosema.core.errors import FileError, ShapeError

D = 8
SITES = {"hook_name": "blocks.1.hook_resid_pre", "hook_name_out": "blocks.1.hook_resid_pre"}
ACROSS = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
METADATA: dict[str, Any] = {
    "model": {"source": "/models/m", "name": "/models/m", "commit": None, "fingerprint": "0123456789abcdef"},
    "tokens": {"source": "text", "fingerprint": "ff", "context_size": 64, "positions": {"start": 1}},
    "stream": {"batch_size": 4},
    "training": {"lr": 0.25, "nested": [{"a": [1, 2.5, None, True, "é"]}]},
    "anything": "else",
    "saelens": {"neuronpedia_id": "x", "l0": 3.5, "model_from_pretrained_kwargs": {"fold_ln": True, "n_devices": 2}},
    "site_transform": {"norms_folded": True, "centered": True},
}


def sae(activation: ActivationConfig, **options: Any) -> CoderConfig:
    return CoderConfig(**{"d_in": D, "d_sae": 12, "d_out": D, "activation": activation, **SITES, **options})


CONFIGS: dict[str, CoderConfig | StackConfig] = {
    "relu": sae(ms.ReLU()),
    "relu, of its own start": sae(
        ms.ReLU(), decoder_init="orthogonal", decoder_init_norm=0.5, encoder_init="independent", seed=7
    ),
    "no bias": sae(ms.ReLU(), b_dec="none", dtype="float64"),
    "bias on the way out": sae(ms.ReLU(), b_dec="output", token_scaling="layer_norm", dtype="bfloat16"),
    "two biases": sae(ms.ReLU(), b_dec="separate", decoder_init="zeros", encoder_init="independent"),
    "tanh": sae(TanhReLU()),
    "topk": sae(ms.TopK(k=3, threshold_rate=0.25)),
    "topk, as SAELens has it": sae(ms.TopK(k=3, weight_by_decoder_norm=False)),
    "topk by threshold": sae(ms.TopK(k=3, inference="threshold", weight_by_decoder_norm=False)),
    "abstopk": sae(AbsTopK(k=3, threshold_rate=0.25)),
    "abstopk, as SAELens has it": sae(AbsTopK(k=3, weight_by_decoder_norm=False)),
    "abstopk by threshold": sae(AbsTopK(k=3, inference="threshold")),
    "batchtopk": sae(ms.BatchTopK(k=2.5, threshold_rate=0.25)),
    "batchtopk, as SAELens has it": sae(ms.BatchTopK(k=2.5, weight_by_decoder_norm=False)),
    "batchtopk by count": sae(ms.BatchTopK(k=2, inference="topk")),
    "jumprelu": sae(ms.JumpReLU(init_threshold=0.5, bandwidth=0.25, kernel="gaussian", ste_to_input=False)),
    "gated": sae(ms.Gated()),
    "transcoder": sae(ms.TopK(k=3, weight_by_decoder_norm=False), d_out=5, b_dec="output", **ACROSS),
    "skip transcoder": sae(ms.JumpReLU(), d_out=5, b_dec="output", skip=True, **ACROSS),
    "crosscoder": sae(
        ms.ReLU(), b_dec="output", read_widths=(3, 5), write_widths=(3, 5), causal=True,
        hook_name="blocks.0.a+blocks.1.b", hook_name_out="blocks.0.a+blocks.1.b",
    ),
    "stack": StackConfig(
        read_widths=(3, 3), write_widths=(4, 4), d_sae=6, activation=ms.TopK(k=2), tied="per_source",
        token_scaling="constant_norm", hook_name="a+b", hook_name_out="c+d", dtype="float64", seed=3,
    ),
}  # fmt: skip


def made(config: CoderConfig | StackConfig, **metadata: Any) -> SparseCoder | CrossLayerTranscoder:
    """A dictionary of that config whose weights, thresholds and densities are not those of a fresh one."""
    kind: Callable[..., Any] = SparseCoder if isinstance(config, CoderConfig) else CrossLayerTranscoder
    coder = kind(config, metadata=metadata)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter += torch.rand(parameter.shape, generator=generator).to(parameter.dtype) / 8
        for part in coder.parts:
            if hasattr(part.coder.activation, "set_threshold"):
                part.coder.activation.set_threshold(0.25)
    coder.metadata["log10_density"] = torch.linspace(-4, -1, coder.d_sae)
    coder.is_trained = True
    return coder


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_a_dictionary_carries_survives(name: str, tmp_path: Path) -> None:
    coder = made(CONFIGS[name], **METADATA)
    ms.save(coder, tmp_path / "one")
    ms.save(ms.load(tmp_path / "one"), tmp_path / "two")
    for folder in ("one", "two"):
        loaded = ms.load(tmp_path / folder)
        assert loaded.config == coder.config
        assert {key: loaded.metadata[key] for key in METADATA} == METADATA
        assert torch.equal(loaded.metadata["log10_density"], coder.metadata["log10_density"])
        assert loaded.site_transform == SiteTransform(norms_folded=True, centered=True)
        assert loaded.is_trained is coder.is_trained
        held, found = coder.state_dict(), loaded.state_dict()
        assert held.keys() == found.keys()
        assert [key for key in held if not torch.equal(held[key], found[key])] == []
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_every_field_has_a_case() -> None:
    activations = [config.activation for config in CONFIGS.values()]
    for cls in (CoderConfig, StackConfig, *activation_kinds().values()):
        held = [each for each in (*CONFIGS.values(), *activations) if type(each) is cls]
        assert held, f"no case has a {cls.__name__}"
        assert _never_changed(cls, held) == [], f"of {cls.__name__}"


def _never_changed(cls: type, held: Iterable[Any]) -> list[str]:
    """The fields that no case gives another value than the default."""
    return [
        field.name
        for field in fields(cls)
        if field.default is not MISSING and all(getattr(each, field.name) == field.default for each in held)
    ]


@pytest.mark.parametrize("name", ["relu", "stack"])
def test_every_attribute_is_saved_or_is_of_the_object_alone(name: str) -> None:
    saved = {"config", "metadata", "is_trained"}
    set_by_load = {"loaded_from"}
    coder = made(CONFIGS[name])
    absent_parameters = {key for key in ("b_dec_in", "W_skip") if key in vars(coder)}
    assert set(vars(coder)) - set(vars(nn.Module())) - absent_parameters == saved | set_by_load


@pytest.mark.parametrize("field", [field.name for field in fields(SiteTransform)])
@pytest.mark.parametrize("name", ["relu", "two biases"])
def test_every_transform_is_kept(name: str, field: str, tmp_path: Path) -> None:
    ms.save(made(CONFIGS[name], site_transform={field: True}), tmp_path / "saved")
    assert ms.load(tmp_path / "saved").site_transform == SiteTransform(**{field: True})


def test_a_damaged_transform_is_refused_when_read(tmp_path: Path) -> None:
    for number, transform in enumerate([{"centred": True}, {"centered": "yes"}, ["centered"]]):
        ms.save(made(CONFIGS["relu"]), tmp_path / str(number))
        path = tmp_path / str(number) / "cfg.json"
        config = json.loads(path.read_text())
        config["monosema"]["metadata"]["site_transform"] = transform
        path.write_text(json.dumps(config))
        with pytest.raises(FileError, match=r"site_transform|centred|centered"):
            ms.load(path.parent)


def test_densities_given_replace_those_carried_and_must_fit(tmp_path: Path) -> None:
    coder = made(CONFIGS["relu"])
    ms.save(coder, tmp_path / "saved", log10_density=torch.full((12,), -2.0))
    assert torch.equal(ms.load(tmp_path / "saved").metadata["log10_density"], torch.full((12,), -2.0))
    with pytest.raises(ShapeError, match="each of 12 latents"):
        ms.save(coder, tmp_path / "saved", log10_density=torch.zeros(3))


def test_a_damaged_threshold_is_refused(tmp_path: Path) -> None:
    ms.save(made(CONFIGS["topk, as SAELens has it"]), tmp_path / "saved")
    path = tmp_path / "saved" / "cfg.json"
    config = json.loads(path.read_text())
    assert config["monosema"]["metadata"]["coder"]["threshold"] == 0.25
    config["monosema"]["metadata"]["coder"]["threshold"] = "0.25"
    path.write_text(json.dumps(config))
    with pytest.raises(FileError, match="running threshold must be a number"):
        ms.load(path.parent)


def test_training_that_leaves_no_folder_keeps_its_densities(tmp_path: Path) -> None:
    rows = torch.randn(2048, D, generator=torch.Generator().manual_seed(0))
    coder = ms.SAE(D, 12, activation=ms.TopK(k=2))
    kept = ms.train(coder, rows, ms.TrainingConfig(tokens=512), batch_size=64, progress=False).coder
    run = ms.train(
        ms.SAE(D, 12, activation=ms.TopK(k=2)),
        rows,
        ms.TrainingConfig(tokens=512),
        batch_size=64,
        out=tmp_path / "run",
        progress=False,
    ).coder
    assert torch.equal(kept.metadata["log10_density"], run.metadata["log10_density"])
    ms.save(kept, tmp_path / "saved")
    assert torch.equal(ms.load(tmp_path / "saved").metadata["log10_density"], run.metadata["log10_density"])
