"""SAELens' folders: fine-tuned scales, heads, names of several models, held against plain formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import monosema as ms
from monosema.coders.site_transform import SiteTransform
from monosema.core.errors import FileError
from monosema.runs.describe import describe

D_IN, D_SAE = 4, 6
OLD = {"d_in": D_IN, "d_sae": D_SAE, "hook_point": "blocks.1.hook_resid_pre", "activation_fn_str": "relu"}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


SCALE = torch.tensor([1.0, 0.5, 2.0, -1.0, 0.0, 3.0])


def folder_with(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    path.mkdir()
    (path / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, path / "sae_weights.safetensors")
    return path


@pytest.mark.parametrize("name", ["finetuning_scaling_factor", "scaling_factor"])
def test_a_fine_tuned_scale_multiplies_activations_before_the_decoder(name: str, tmp_path: Path) -> None:
    w = weights()
    folder = folder_with(tmp_path / "old", {**OLD, "finetuning_scaling_factor": True}, {**w, name: SCALE})
    coder = ms.load(folder)
    x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1))
    f = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(coder.encode(x), f)
    torch.testing.assert_close(coder(x), (f * SCALE) @ w["W_dec"] + w["b_dec"])
    ms.save(coder, tmp_path / "new")
    assert set(load_file(tmp_path / "new" / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    torch.testing.assert_close(ms.load(tmp_path / "new")(x), coder(x), rtol=0, atol=0)


def test_a_scale_comes_after_the_decoder_norms_of_a_topk_selection(tmp_path: Path) -> None:
    w = weights()
    config = {**OLD, "sae_lens_version": "6.0.0", "architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}
    coder = ms.load(folder_with(tmp_path / "topk", config, {**w, "finetuning_scaling_factor": SCALE}))
    x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1))
    norms = w["W_dec"].norm(dim=1)
    competing = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    kept = torch.zeros_like(competing).scatter(1, competing.topk(2, dim=1).indices, 1.0)
    f = competing.relu() * kept
    torch.testing.assert_close(coder(x), (f * SCALE) @ (w["W_dec"] / norms[:, None]) + w["b_dec"])


@pytest.mark.parametrize("is_on", [True, False, None])
def test_a_scale_of_one_is_passed_over(is_on: bool | None, tmp_path: Path) -> None:
    config = OLD if is_on is None else {**OLD, "finetuning_scaling_factor": is_on}
    coder = ms.load(folder_with(tmp_path / "old", config, {**weights(), "scaling_factor": torch.ones(D_SAE)}))
    assert torch.equal(coder.W_dec, weights()["W_dec"])


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"finetuning_scaling_factor": False}, {"scaling_factor": SCALE}, "set it to true to have it applied"),
        ({"finetuning_scaling_factor": True}, {}, "has no such tensor"),
        ({}, {"scaling_factor": SCALE[:3]}, r"expected one finite scale \[6\], found scaling_factor \[3\]"),
        ({}, {"scaling_factor": SCALE / 0}, "expected one finite scale"),
        ({}, {"scaling_factor": SCALE, "finetuning_scaling_factor": SCALE}, "expected one finite scale"),
    ],
)
def test_a_scale_that_contradicts_its_config_is_refused(
    config: dict[str, Any], tensors: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    folder = folder_with(
        tmp_path / "bad", {**OLD, **config}, {**weights(), **{k: v.clone() for k, v in tensors.items()}}
    )
    with pytest.raises(FileError, match=message):
        ms.load(folder)


TOKEN_SCALINGS = {"constant_norm": "constant_norm_rescale", "layer_norm": "layer_norm"}


def scaled_tokens(x: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor | float]:
    if kind == "constant_norm":
        spread = x.norm(dim=1, keepdim=True) / D_IN**0.5
        return x / spread, spread, 0.0
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (deviation + 1e-5), deviation, mean


@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
def test_an_sae_scales_each_token_and_scales_its_output_back(kind: str, tmp_path: Path) -> None:
    w = weights()
    config = {"sae_lens_version": "6.54.12", "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE}
    coder = ms.load(folder_with(tmp_path / "sae", {**config, "normalize_activations": TOKEN_SCALINGS[kind]}, w))
    x = 7 * torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1)) + 2
    u, spread, shift = scaled_tokens(x, kind)
    f = ((u - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(coder.encode(x), f)
    torch.testing.assert_close(coder(x), (f @ w["W_dec"] + w["b_dec"]) * spread + shift)
    assert saved(coder, tmp_path / "again")["normalize_activations"] == TOKEN_SCALINGS[kind]
    again = ms.load(tmp_path / "again")
    assert again.config.token_scaling == kind
    assert torch.equal(again(x), coder(x))


@pytest.mark.parametrize("kind", TOKEN_SCALINGS)
@pytest.mark.parametrize("named", [True, False])
def test_a_transcoders_output_is_left_as_it_is(kind: str, named: bool, tmp_path: Path) -> None:
    w = weights()
    metadata = {"sae_lens_version": "6.54.12", **({"hook_name": "a", "hook_name_out": "b"} if named else {})}
    config = {"architecture": "transcoder", "d_in": D_IN, "d_out": D_IN, "d_sae": D_SAE, "metadata": metadata}
    coder = ms.load(folder_with(tmp_path / "sae", {**config, "normalize_activations": TOKEN_SCALINGS[kind]}, w))
    x = 7 * torch.randn(9, D_IN, generator=torch.Generator().manual_seed(1)) + 2
    f = (scaled_tokens(x, kind)[0] @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(coder(x), f @ w["W_dec"] + w["b_dec"])
    ms.save(coder, tmp_path / "again")
    assert torch.equal(ms.load(tmp_path / "again")(x), coder(x))


@pytest.mark.parametrize(
    ("architecture", "normalize", "message"),
    [
        ("standard", "expected_average_only_in", "load its final folder"),
        ("standard", "rms", "normalize_activations='rms' is not supported"),
        ("skip_transcoder", "layer_norm", "skip connection reads tokens that are not scaled"),
    ],
)
def test_a_normalisation_that_no_coder_has_is_refused(
    architecture: str, normalize: str, message: str, tmp_path: Path
) -> None:
    config = {"sae_lens_version": "6.54.12", "architecture": architecture, "normalize_activations": normalize}
    with pytest.raises(FileError, match=message):
        ms.load(folder_with(tmp_path / "no", config, weights()))


def saved(coder: ms.SparseCoder, path: Path) -> dict[str, Any]:
    return json.loads((ms.save(coder, path) / "cfg.json").read_text())


def bound(reads: str, writes: str, metadata: dict[str, Any]) -> ms.SparseCoder:
    coder = ms.SAE(4, 6, activation=ms.ReLU()) if reads == writes else ms.Transcoder(4, 4, 6, activation=ms.ReLU())
    coder.bind(reads, writes, metadata)
    coder.is_trained = True
    return coder


def test_a_head_is_a_site_and_an_index_in_saelens(tmp_path: Path) -> None:
    head = "blocks.2.attn.hook_z[3]"
    metadata = saved(bound(head, head, {"model": {"name": "m"}}), tmp_path / "head")["metadata"]
    assert metadata["hook_name"] == "blocks.2.attn.hook_z"
    assert metadata["hook_head_index"] == 3
    assert metadata["model_name"] == "m"
    coder = ms.load(tmp_path / "head")
    assert coder.hook_name == coder.hook_name_out == head
    whole = saved(bound("blocks.2.attn.hook_z", "blocks.2.attn.hook_z", {}), tmp_path / "whole")["metadata"]
    assert (whole["hook_name"], whole["hook_head_index"]) == ("blocks.2.attn.hook_z", None)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ({}, [None]),
        ({"start": 0, "stop": None, "step": 1}, [None]),
        ({"start": 5, "stop": -5, "step": None}, [5, -5]),
        ({"start": None, "stop": 9, "step": 2}, [None, 9, 2]),
    ],
)
def test_chosen_positions_are_seqpos_slice(tmp_path: Path, positions: dict[str, int | None], expected: list) -> None:
    tokens = {"positions": positions, "separator": 7, "packing": {"mode": "one_document"}}
    config = saved(bound("a", "a", {"tokens": tokens}), tmp_path / "c")
    metadata = config["metadata"]
    assert metadata["seqpos_slice"] == expected
    assert (metadata["sequence_separator_token"], metadata["disable_concat_sequences"]) == (7, True)
    del config["monosema"]  # as SAELens writes it
    (tmp_path / "c/cfg.json").write_text(json.dumps(config))
    found = ms.load(tmp_path / "c").metadata.get("tokens", {}).get("positions", {})
    start, stop, step = (*expected, None, None, None)[:3] if len(expected) > 1 else (None, None, None)
    assert [found.get(name) for name in ("start", "stop", "step")] == [start, stop, step]


def test_a_transcoder_from_head_to_head_keeps_both(tmp_path: Path) -> None:
    reads, writes = "blocks.0.attn.hook_q[1]", "blocks.2.attn.hook_z[0]"
    metadata = saved(bound(reads, writes, {}), tmp_path / "heads")["metadata"]
    assert (metadata["hook_name_out"], metadata["hook_head_index_out"]) == ("blocks.2.attn.hook_z", 0)
    coder = ms.load(tmp_path / "heads")
    assert (coder.hook_name, coder.hook_name_out) == (reads, writes)


def test_an_old_file_of_one_head_reads_one_vector(tmp_path: Path) -> None:
    config = {**OLD, "hook_point": "blocks.1.attn.hook_z", "hook_point_head_index": 2}
    assert ms.load(folder_with(tmp_path / "one", config, weights())).hook_name == "blocks.1.attn.hook_z[2]"
    with pytest.raises(FileError, match="heads side by side"):
        ms.load(folder_with(tmp_path / "all", {**config, "hook_point_head_index": None}, weights()))


def test_several_models_are_one_string_for_saelens_and_a_mapping_for_us(tmp_path: Path) -> None:
    models = {"base": {"name": "org/base"}, "chat": {"name": "org/chat"}, "other": {"name": "org/other"}}
    coder = bound("base:blocks.1.mlp.hook_in", "chat:blocks.1.hook_mlp_out", {"models": models})
    config = saved(coder, tmp_path / "two")
    assert config["metadata"]["model_name"] == "org/base+org/chat"
    assert config["monosema"]["model_names"] == {"base": "org/base", "chat": "org/chat"}
    one = saved(bound("chat:hook_embed", "chat:hook_embed", {"models": models}), tmp_path / "one")
    assert one["metadata"]["model_name"] == "org/chat"
    assert "model_names" not in one["monosema"]
    assert ms.load(tmp_path / "two").hook_name_out == "chat:blocks.1.hook_mlp_out"


JB = {"d_in": D_IN, "d_sae": D_SAE, "hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2-small"}
V6 = {
    "architecture": "standard",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "apply_b_dec_to_input": True,
    "metadata": {
        "sae_lens_version": "6.54.12",
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_head_index": None,
        "model_name": "gpt2-small",
        "model_class_name": "HookedTransformer",
        "dataset_path": "owner/text",
        "context_size": 64,
        "prepend_bos": True,
        "exclude_special_tokens": False,
        "sequence_separator_token": "bos",
        "disable_concat_sequences": True,
        "seqpos_slice": [None],
    },
}


def v6(**metadata: object) -> dict[str, Any]:
    return {**V6, "metadata": {**V6["metadata"], **metadata}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (v6(), {}),
        (v6(model_from_pretrained_kwargs={}), {}),
        (v6(model_from_pretrained_kwargs={"n_devices": 2, "dtype": "float16"}), {}),
        (v6(model_from_pretrained_kwargs={"center_writing_weights": False}), {}),
        (v6(model_from_pretrained_kwargs={"center_writing_weights": True}), {"centered": True}),
        (
            v6(model_from_pretrained_kwargs={"fold_ln": True, "fold_value_biases": True, "center_unembed": True}),
            {"norms_folded": True, "value_biases_folded": True},
        ),
        (
            v6(model_from_pretrained_kwargs={"refactor_factored_attn_matrices": True}),
            {"attention_refactored": True},
        ),
        (v6(hook_name="blocks.1.ln2.hook_normalized"), {"norm_outputs_after_gain": True}),
        (
            v6(hook_name="blocks.1.ln2.hook_normalized", model_from_pretrained_kwargs={"fold_ln": True}),
            {"norms_folded": True},
        ),
        (v6(hook_name="blocks.1.ln2.hook_normalized", model_class_name="AutoModelForCausalLM"), {}),
        (JB, {"centering_unknown": True}),
        ({**JB, "model_from_pretrained_kwargs": {"center_writing_weights": True}}, {"centered": True}),
        ({**JB, "model_from_pretrained_kwargs": {"center_writing_weights": False}}, {}),
        ({**JB, "model_from_pretrained_kwargs": {}}, {}),
        ({**JB, "model_class_name": "HookedMamba"}, {}),
    ],
)
def test_how_the_weights_were_processed_is_read(
    config: dict[str, Any], expected: dict[str, bool], tmp_path: Path
) -> None:
    coder = ms.load(folder_with(tmp_path / "sae", config, weights()))
    assert coder.site_transform == SiteTransform(**expected)
    ms.save(coder, tmp_path / "again")
    assert ms.load(tmp_path / "again").site_transform == coder.site_transform


@pytest.mark.parametrize("config", [JB, V6], ids=["flat", "version 6"])
def test_arguments_of_the_model_are_kept_and_written(config: dict[str, Any], tmp_path: Path) -> None:
    kwargs = {"center_writing_weights": True, "fold_ln": False, "n_devices": 2, "trust_remote_code": True}
    told = {"model_from_pretrained_kwargs": kwargs}
    given = {**config, **told} if config is JB else v6(**told)
    ms.save(ms.load(folder_with(tmp_path / "sae", given, weights())), tmp_path / "again")
    written = json.loads((tmp_path / "again" / "cfg.json").read_text())["metadata"]
    assert written["model_from_pretrained_kwargs"] == {"center_writing_weights": True, "fold_ln": False}
    assert written["model_class_name"] == "HookedTransformer"


def test_a_dictionary_of_a_plain_model_has_no_arguments(tmp_path: Path) -> None:
    ms.save(ms.SAE(D_IN, D_SAE, activation=ms.ReLU(), hook_name="blocks.1.hook_resid_pre"), tmp_path / "own")
    assert "model_from_pretrained_kwargs" not in json.loads((tmp_path / "own" / "cfg.json").read_text())["metadata"]


def test_what_saelens_recorded_is_there_when_it_is_saved_again(tmp_path: Path) -> None:
    ms.save(ms.load(folder_with(tmp_path / "sae", V6, weights())), tmp_path / "again")
    written = json.loads((tmp_path / "again" / "cfg.json").read_text())["metadata"]
    assert {key: written[key] for key in V6["metadata"]} == V6["metadata"]


def test_a_dictionary_trained_further_here_records_our_model_and_text(tmp_path: Path) -> None:
    given = v6(model_from_pretrained_kwargs={"center_writing_weights": True})
    coder = ms.load(folder_with(tmp_path / "sae", given, weights()))
    tokens = {"source": "stdlib", "context_size": 32, "begin_context": None}
    coder.bind(coder.hook_name, coder.hook_name, {"model": {"name": "builtin"}, "tokens": tokens})
    ms.save(coder, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert (written["model_name"], written["dataset_path"], written["context_size"]) == ("builtin", "stdlib", 32)
    assert "model_from_pretrained_kwargs" not in written
    assert coder.site_transform == SiteTransform()


@pytest.mark.parametrize("kwargs", [{"center_writing_weights": "true"}, {"fold_ln": 1}, ["fold_ln"]])
def test_arguments_of_another_kind_are_refused(kwargs: object, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "sae", v6(model_from_pretrained_kwargs=kwargs), weights())
    with pytest.raises(FileError, match="model_from_pretrained_kwargs"):
        ms.load(folder)


def test_processed_weights_are_warned_of_when_loaded_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"center_writing_weights": True, "fold_ln": True}
    folder = folder_with(tmp_path / "sae", v6(model_from_pretrained_kwargs=told), weights())
    ms.load(folder)
    assert "that the plain model does not have (centered, norms folded)" in caplog.text
    assert "centered, norms folded" in describe(folder)
    caplog.clear()
    plain = folder_with(tmp_path / "plain", v6(), weights())
    ms.load(plain)
    assert caplog.text == ""
    assert "processed" not in describe(plain)
