"""SAELens' folder format (6.54.12): ``cfg.json``, ``sae_weights.safetensors``, ``sparsity.safetensors``.

What SAELens has a class for is written exactly as SAELens would, plus a ``monosema`` block in ``cfg.json`` that it
ignores. What it has no class for gets an ``architecture`` it refuses, never one it misreads. One head of a site,
``blocks.2.attn.hook_z[3]`` here, is the site and a ``hook_head_index`` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from monosema.core.errors import FileError, unknown_name
from monosema.core.files import read_json, write_atomically, write_json
from monosema.core.finite import all_finite
from monosema.core.plain import flag_in, list_in, mapping_in, text_in, whole_in
from monosema.formats.checkpoints import CONFIG_FILE
from monosema.formats.checks import checked_density, checked_metadata, checked_saelens
from monosema.formats.processing import CLASS, KWARGS, read_transform, written_kwargs
from monosema.formats.spec import CoderSpec, Rule, TokenScaling
from monosema.formats.tensors import read_tensors

WEIGHTS_FILE, SPARSITY_FILE = "sae_weights.safetensors", "sparsity.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE)
"""All that a folder of this format holds."""
SAELENS_VERSION = "6.54.12"
"""The version whose rules are followed; readers use the field to tell the layout."""

_SAE_NAMES: dict[str, Rule] = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
}
_TRANSCODER_NAMES: dict[str, tuple[Rule, bool]] = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
    "monosema_topk_transcoder": ("topk", False),
    "monosema_topk_skip_transcoder": ("topk", True),
    "monosema_gated_transcoder": ("gated", False),
    "monosema_gated_skip_transcoder": ("gated", True),
}
_OLD_KEYS = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_SCALE_NAMES = ("finetuning_scaling_factor", "scaling_factor")
"""A scale of each latent's activation before the decoder, trained in a last phase by SAELens before 6; newer and older
name."""
_TOKEN_SCALINGS: dict[str, TokenScaling] = {
    "none": "none",
    "constant_norm_rescale": "constant_norm",
    "layer_norm": "layer_norm",
}
"""``normalize_activations`` that a coder here can hold. SAELens scales only an SAE's output back, as we do."""
_HEAD = re.compile(r"(.+)\[([0-9]+)\]")
_RULE_TENSORS: dict[Rule, tuple[str, ...]] = {
    "relu": ("b_enc",),
    "topk": ("b_enc",),
    "abstopk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "r_mag", "b_mag"),
}


def write(spec: CoderSpec, folder: Path) -> None:
    """Write ``spec`` into the existing ``folder``."""
    tensors = dict(spec.tensors)
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T  # SAELens keeps [d_out, d_in]
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(folder / WEIGHTS_FILE, data)
    if spec.log10_density is not None:
        density = spec.log10_density.detach().cpu().float().contiguous()
        write_atomically(folder / SPARSITY_FILE, save({"sparsity": density}))
    write_json(folder / CONFIG_FILE, _config(spec))


def read(folder: Path) -> CoderSpec:
    """The dictionary in ``folder``; ``FileError`` where files are missing, damaged or do not fit together."""
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict):
        raise FileError(f"{folder / CONFIG_FILE} must hold a JSON object")
    is_old = _is_old(config, folder / CONFIG_FILE)
    config = _upgraded(config, folder / CONFIG_FILE) if is_old else config
    _refuse_unreadable(folder, config)
    where = folder / CONFIG_FILE
    architecture = text_in(config, "architecture", where) or "standard"
    if architecture in _SAE_NAMES:
        rule, is_transcoder, skip = _SAE_NAMES[architecture], False, False
    elif architecture in _TRANSCODER_NAMES:
        (rule, skip), is_transcoder = _TRANSCODER_NAMES[architecture], True
    else:
        names = [*_SAE_NAMES, *_TRANSCODER_NAMES]
        raise FileError(f"{where}: {unknown_name('architecture', architecture[:80], names)}")
    token_scaling = _token_scaling(folder, config, skip)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    scales = {name: tensors.pop(name) for name in _SCALE_NAMES if name in tensors}
    _check_shapes(folder, config, tensors, rule, skip)
    scale = _fine_tuned_scale(folder, config, scales, len(tensors["W_dec"]))
    if skip:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    if rule in ("topk", "abstopk") and flag_in(config, "rescale_acts_by_decoder_norm", where):
        tensors = _fold_decoder_norms(tensors)
    if scale is not None:
        tensors["W_dec"] = tensors["W_dec"] * scale.to(tensors["W_dec"]).unsqueeze(1)
    metadata = checked_saelens(mapping_in(config, "metadata", where), where)
    own = mapping_in(config, "monosema", where)
    hook_name, hook_name_out = (
        _with_head(text_in(metadata, f"hook_name{end}", where), whole_in(metadata, f"hook_head_index{end}", where))
        for end in ("", "_out")
    )
    if token_scaling != "none" and is_transcoder:
        hook_name_out = hook_name_out or "target"  # that it is another site than the one read decides what is computed
    recorded = checked_metadata(own.get("metadata"), where)
    return CoderSpec(
        rule=rule,
        tensors=tensors,
        is_transcoder=is_transcoder,
        subtracts_b_dec=flag_in(config, "apply_b_dec_to_input", where) is not False and not is_transcoder,
        dtype=(text_in(config, "dtype", where) or "float32").removeprefix("torch."),
        token_scaling=token_scaling,
        k=whole_in(config, "k", where),
        hook_name=hook_name,
        hook_name_out=hook_name_out or hook_name,
        training_activation=mapping_in(own, "activation", where) or None,
        metadata=recorded or _foreign_metadata(metadata, is_old, where),
        log10_density=checked_density(folder / SPARSITY_FILE),
    )


def _is_old(config: Mapping[str, Any], where: Path) -> bool:
    """Whether ``cfg.json`` is of before SAELens 6."""
    metadata = mapping_in(config, "metadata", where)
    version = text_in(config, "sae_lens_version", where) or text_in(metadata, "sae_lens_version", where) or "0"
    return version.split(".")[0] in {"0", "1", "2", "3", "4", "5"}


def _foreign_metadata(metadata: Mapping[str, Any], is_old: bool, where: Path) -> dict[str, Any]:
    """The metadata of a dictionary that was not saved here: what SAELens recorded, and what of it has words here."""
    transform = read_transform(metadata, is_old=is_old, where=where)
    return {
        "saelens": metadata,
        **_recorded_positions(metadata, where),
        **({} if transform is None else {"site_transform": transform}),
    }


def _upgraded(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """A ``cfg.json`` of before SAELens 6, whose keys were flat, in today's form."""
    metadata = mapping_in(config, "metadata", where)
    new = {_OLD_KEYS.get(key, key): value for key, value in config.items()}
    heads_side_by_side = "hook_z" in (text_in(new, "hook_name", where) or "") and new.get("hook_head_index") is None
    new.setdefault("reshape_activations", "hook_z" if heads_side_by_side else "none")
    function = text_in(new, "activation_fn", where) or "relu"
    if function == "topk":
        new |= {"architecture": "topk", "k": mapping_in(new, "activation_fn_kwargs", where).get("k")}
    elif function != "relu":
        raise FileError(f"{where}: the activation function {function!r:.80} is not known; relu and topk are")
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    kept = (
        "hook_name",
        "hook_head_index",
        "model_name",
        "dataset_path",
        "context_size",
        "prepend_bos",
        "seqpos_slice",
        CLASS,
        KWARGS,
    )
    new["metadata"] = {**{key: new[key] for key in kept if key in new}, **metadata}
    return new


def _token_scaling(folder: Path, config: Mapping[str, Any], skip: bool) -> TokenScaling:
    """The scaling by each token's size; ``FileError`` for what is not one, and beside a skip connection."""
    normalize = config.get("normalize_activations") or "none"
    if not isinstance(normalize, str) or normalize not in _TOKEN_SCALINGS:
        raise FileError(
            f"{folder / CONFIG_FILE}: normalize_activations={normalize!r} is not supported; a finished SAELens run "
            "folds 'expected_average_only_in' and 'covariance_whitening' into the weights: load its final folder, not "
            "a checkpoint"
        )
    if normalize != "none" and skip:
        raise FileError(
            f"{folder / CONFIG_FILE}: normalize_activations={normalize!r} of a skip transcoder is not supported; its "
            "skip connection reads tokens that are not scaled"
        )
    return _TOKEN_SCALINGS[normalize]


def _refuse_unreadable(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ``FileError`` for options that change what the dictionary computes and that a coder here cannot hold."""
    reshape = config.get("reshape_activations") or "none"
    if reshape != "none":
        raise FileError(
            f"{folder / CONFIG_FILE}: reshape_activations={reshape!r} is not supported; it reads heads side by side "
            "where ours reads one vector: set it to 'none' to use the dictionary on flattened heads"
        )


def _fine_tuned_scale(
    folder: Path, config: Mapping[str, Any], scales: Mapping[str, Tensor], d_sae: int
) -> Tensor | None:
    """The scale ``s [d_sae]`` in ``x̂ = (f · s) W_dec + b_dec``; None where it is one.

    Folding it into the decoder keeps the activations f as SAELens shows them.
    """
    is_on = flag_in(config, "finetuning_scaling_factor", folder / CONFIG_FILE)
    if not scales:
        if is_on:
            raise FileError(
                f"{folder / CONFIG_FILE} says finetuning_scaling_factor, but {WEIGHTS_FILE} has no such tensor; set it "
                "to false where the decoder needs no scale"
            )
        return None
    (name, scale), *others = scales.items()
    if others or tuple(scale.shape) != (d_sae,) or not all_finite(scale):
        shapes = ", ".join(f"{each} {list(value.shape)}" for each, value in scales.items())
        raise FileError(f"{folder / WEIGHTS_FILE}: expected one finite scale [{d_sae}], found {shapes}")
    if bool((scale == 1).all()):
        return None  # many old files carry it unused
    if is_on is False:
        raise FileError(
            f"{folder / WEIGHTS_FILE} holds a {name} other than one, but {CONFIG_FILE} says "
            "finetuning_scaling_factor=false; set it to true to have it applied, or delete the tensor"
        )
    return scale


def _position_slice(positions: Mapping[str, Any]) -> list[int | None]:
    """The positions trained on, as the arguments of ``slice``; SAELens takes a third one only where it is above 1."""
    start, stop, step = (positions.get(name) for name in ("start", "stop", "step"))
    if step not in (None, 1):
        return [start, stop, step]
    return [None] if start in (None, 0) and stop is None else [start, stop]


def _recorded_positions(metadata: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The same, back, as our metadata say it; nothing where all positions were trained on."""
    given = list_in(metadata, "seqpos_slice", where)[:3] or [None]
    if not all(each is None or type(each) is int for each in given):
        raise FileError(f"{where}: seqpos_slice must be a list of whole numbers or null, got {given!r:.80}")
    chosen = slice(*given)
    if given == [None]:
        return {}
    return {"tokens": {"positions": {"start": chosen.start, "stop": chosen.stop, "step": chosen.step}}}


def _with_head(hook_name: str | None, index: int | None) -> str | None:
    return hook_name if hook_name is None or index is None else f"{hook_name}[{index}]"


def _without_head(hook_name: str | None) -> tuple[str | None, int | None]:
    """Site and head of a name."""
    match = _HEAD.fullmatch(hook_name or "")
    return (match[1], int(match[2])) if match else (hook_name, None)


def _fold_decoder_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A TopK SAE that selects by ``pre_i · ‖W_dec_i‖`` as the same one with unit decoder rows."""
    norms = tensors["W_dec"].norm(dim=1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms.clamp(min=torch.finfo(norms.dtype).tiny).unsqueeze(1),
    }


def _config(spec: CoderSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architecture": _architecture(spec),
        "d_in": spec.d_in,
        "d_sae": spec.d_sae,
        **({"d_out": spec.d_out} if spec.is_transcoder else {}),
        **({"k": spec.k, "rescale_acts_by_decoder_norm": False} if spec.k is not None else {}),
        "dtype": spec.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": spec.subtracts_b_dec,
        "normalize_activations": next(name for name, own in _TOKEN_SCALINGS.items() if own == spec.token_scaling),
        "reshape_activations": "none",
    }
    hook_name_out, head_out = _without_head(spec.hook_name_out)
    config["metadata"] = {
        "sae_lens_version": SAELENS_VERSION,
        **recorded_metadata(spec.hook_name, spec.metadata, spec.hook_name_out),
        "model_class_name": "AutoModelForCausalLM",
        **_kept(spec.metadata),
        **written_kwargs(spec.metadata),
        **({"hook_name_out": hook_name_out, "hook_head_index_out": head_out} if spec.is_transcoder else {}),
    }
    models = _model_names(spec.metadata, spec.hook_name, spec.hook_name_out)
    config["monosema"] = {
        "activation": spec.training_activation,
        **({"model_names": models} if len(models) > 1 else {}),
        "metadata": dict(spec.metadata),
    }
    return config


def recorded_metadata(
    hook_name: str | None, metadata: Mapping[str, Any], hook_name_out: str | None = None
) -> dict[str, Any]:
    """What SAELens calls ``cfg.metadata``, of a dictionary that reads ``hook_name`` and recorded ``metadata``."""
    tokens = metadata.get("tokens") or {}
    site, head = _without_head(hook_name)
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
    foreign = metadata.get("saelens") or {}
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


def _architecture(spec: CoderSpec) -> str:
    if not spec.is_transcoder:
        return next(name for name, rule in _SAE_NAMES.items() if rule == spec.rule)
    key = (spec.rule, "W_skip" in spec.tensors)
    return next(name for name, value in _TRANSCODER_NAMES.items() if value == key)


def _check_shapes(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], rule: Rule, skip: bool
) -> None:
    d_in, d_sae, d_out = (whole_in(config, name, folder / CONFIG_FILE) for name in ("d_in", "d_sae", "d_out"))
    if d_in is None or d_sae is None:
        raise FileError(f"{folder / CONFIG_FILE} does not state d_in and d_sae")
    d_out = d_in if d_out is None else d_out
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    expected |= dict.fromkeys(_RULE_TENSORS[rule], (d_sae,))
    if skip:
        expected["W_skip"] = (d_out, d_in)
    surplus = sorted(set(tensors) - set(expected))
    if surplus:  # each would change what is computed
        raise FileError(
            f"{folder / WEIGHTS_FILE} holds {', '.join(surplus)}, which no {config.get('architecture')} has"
        )
    for name, shape in expected.items():
        if name not in tensors:
            raise FileError(f"{folder / WEIGHTS_FILE} lacks {name}; it holds {', '.join(sorted(tensors))}")
        if tuple(tensors[name].shape) != shape:
            raise FileError(
                f"{folder / WEIGHTS_FILE}: {name} is {list(tensors[name].shape)}, {CONFIG_FILE} says {list(shape)}"
            )
    if not all(map(all_finite, tensors.values())):
        raise FileError(f"{folder / WEIGHTS_FILE} holds values that are not finite")
