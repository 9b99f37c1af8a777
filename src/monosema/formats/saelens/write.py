"""Dictionaries as SAELens would write them, with a ``monosema`` block in ``cfg.json`` that it ignores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosema.core.files import write_json
from monosema.core.peers import SAELENS_VERSION
from monosema.formats.format import Fit
from monosema.formats.saelens.names import (
    NAME,
    RULE_TENSORS,
    SAE_RULES,
    TOKEN_SCALINGS,
    TRANSCODER_RULES,
    WEIGHTS_FILE,
    without_head,
)
from monosema.formats.saelens.processing import CLASS, written_kwargs
from monosema.formats.shared import CONFIG_FILE, write_density, write_safetensors
from monosema.formats.spec import DictionarySpec, PartSpec, joined


def can_hold(spec: DictionarySpec) -> Fit:
    """Whether a folder of SAELens' computes what ``spec`` does. What is not known here is refused."""
    if spec.kind != "coder":
        return Fit("it has no stack of coders")
    if len(spec.reads) > 1 or len(spec.writes) > 1:
        return Fit("it has no dictionary of several sites")
    (part,) = spec.parts
    if part.b_dec_in is not None:
        return Fit("it has no second bias, subtracted from the input")
    if part.token_scaling not in TOKEN_SCALINGS.values():
        return Fit(f"it has no token_scaling={part.token_scaling!r}")
    if part.rule is None or _architecture(spec, part.rule.name) is None:
        what = f"{'a transcoder' if _is_transcoder(spec) else 'an SAE'}{' with a skip connection' * _has_skip(part)}"
        return Fit(f"it has no architecture of {what} for {_activation_words(part)}")
    if part.rule.by_decoder_norm and not _has_unit_rows(part.W_dec):
        return Fit(
            "its latents do not compete by the decoder's norms, and the decoder rows are not of norm one "
            "(fold_selection_weights() makes them so)"
        )
    return Fit()


def write(spec: DictionarySpec, folder: Path) -> None:
    """Write ``spec``, which SAELens has an architecture for, into the existing ``folder``."""
    (part,) = spec.parts
    assert part.rule is not None
    named = {
        "W_enc": part.W_enc,
        "W_dec": part.W_dec,
        "b_dec": part.W_dec.new_zeros(part.d_out) if part.b_dec is None else part.b_dec,
        "b_enc": part.b_enc,
        "W_skip": None if part.W_skip is None else part.W_skip.T,  # SAELens keeps [d_out, d_in]
        **{name: part.rule.tensors[name] for name in RULE_TENSORS[part.rule.name] if name != "b_enc"},
    }
    write_safetensors(folder / WEIGHTS_FILE, {name: tensor for name, tensor in named.items() if tensor is not None})
    write_density(folder, spec.log10_density)
    write_json(folder / CONFIG_FILE, _config(spec, part))


def _config(spec: DictionarySpec, part: PartSpec) -> dict[str, Any]:
    assert part.rule is not None
    hook_name, written, is_transcoder = joined(spec.reads), joined(spec.writes), _is_transcoder(spec)
    k = part.rule.k if part.rule.name in ("topk", "abstopk") else None
    config: dict[str, Any] = {
        "architecture": _architecture(spec, part.rule.name),
        "d_in": part.d_in,
        "d_sae": part.d_sae,
        **({"d_out": part.d_out} if is_transcoder else {}),
        **({"k": k, "rescale_acts_by_decoder_norm": False} if k is not None else {}),
        "dtype": spec.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": part.subtracts_b_dec,
        "normalize_activations": next(name for name, own in TOKEN_SCALINGS.items() if own == part.token_scaling),
        "reshape_activations": "none",
    }
    hook_name_out, head_out = without_head(written)
    config["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        **recorded_metadata(hook_name, spec.metadata, written),
        "model_class_name": "AutoModelForCausalLM",
        **_kept(spec.metadata),
        **written_kwargs(spec.metadata),
        **({"hook_name_out": hook_name_out, "hook_head_index_out": head_out} if is_transcoder else {}),
    }
    models = _model_names(spec.metadata, hook_name, written)
    config["monosema"] = {
        "activation": None if part.trained is None else part.trained.config,
        **({"model_names": models} if len(models) > 1 else {}),
        "metadata": {**spec.metadata, "coder": _not_in_saelens(spec, part)},
    }
    return config


def _not_in_saelens(spec: DictionarySpec, part: PartSpec) -> dict[str, Any]:
    """What of a dictionary SAELens has no place for, as plain values."""
    threshold = None if part.trained is None else part.trained.threshold
    return {"b_dec": part.bias_mode, **spec.start, **({} if threshold is None else {"threshold": threshold})}


def _is_transcoder(spec: DictionarySpec) -> bool:
    return spec.reads != spec.writes or _has_skip(spec.parts[0])


def _has_skip(part: PartSpec) -> bool:
    return part.W_skip is not None


def _architecture(spec: DictionarySpec, rule: str) -> str | None:
    """SAELens' name, or one of ours that it refuses; None where neither side has one."""
    if not _is_transcoder(spec):
        return next((name for name, own in SAE_RULES.items() if own == rule), None)
    key = (rule, _has_skip(spec.parts[0]))
    return next((name for name, own in TRANSCODER_RULES.items() if own == key), None)


def _activation_words(part: PartSpec) -> str:
    if part.rule is not None:
        return f"the rule {part.rule.name!r}"
    kind = None if part.trained is None else part.trained.config.get("kind")
    return f"the activation {kind}, which names no rule"


def _has_unit_rows(W_dec: Tensor) -> bool:
    norms = W_dec.norm(dim=1)
    return bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-4))


def recorded_metadata(
    hook_name: str | None, metadata: Mapping[str, Any], hook_name_out: str | None = None
) -> dict[str, Any]:
    """What SAELens calls ``cfg.metadata``, of a dictionary that reads ``hook_name`` and recorded ``metadata``."""
    tokens = metadata.get("tokens") or {}
    site, head = without_head(hook_name)
    return {
        "hook_name": site,
        "hook_head_index": head,
        "model_name": "+".join(dict.fromkeys(_model_names(metadata, hook_name, hook_name_out).values())) or None,
        "dataset_path": tokens.get("source"),
        "context_size": tokens.get("context_size"),
        "prepend_bos": tokens.get("begin_context") is not None,
        "exclude_special_tokens": tokens.get("exclude_special_tokens", True),
        "seqpos_slice": _position_slice(tokens.get("positions") or {}),
        "sequence_separator_token": tokens.get("separator"),
        "disable_concat_sequences": (tokens.get("packing") or {}).get("mode") == "one_document",
    }


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What SAELens recorded of the model and text of a dictionary that was trained there and not here."""
    foreign = metadata.get(NAME) or {}
    kept: tuple[str, ...] = ()
    if not (metadata.get("model") or metadata.get("models")):
        kept += ("model_name", CLASS)
    if "source" not in (metadata.get("tokens") or {}):
        kept += ("dataset_path", "context_size", "prepend_bos", "exclude_special_tokens", "sequence_separator_token")
        kept += ("disable_concat_sequences",)
    return {name: foreign[name] for name in kept if name in foreign}


def _model_names(metadata: Mapping[str, Any], *hook_names: str | None) -> dict[str, str]:
    """The models that the sites belong to, by what the sites call them; one is called ``""``."""
    models = metadata.get("models") or {}
    keys = [name.partition(":")[0] for name in hook_names if name is not None]
    if models and keys and all(key in models for key in keys):
        return {key: str(models[key].get("name") or key) for key in dict.fromkeys(keys)}
    name = (metadata.get("model") or {}).get("name")
    return {} if name is None else {"": str(name)}


def _position_slice(positions: Mapping[str, Any]) -> list[int | None]:
    """The positions trained on, as the arguments of ``slice``; SAELens takes a third one only where it is above 1."""
    start, stop, step = (positions.get(name) for name in ("start", "stop", "step"))
    if step not in (None, 1):
        return [start, stop, step]
    return [None] if start in (None, 0) and stop is None else [start, stop]
