"""Folders that SAELens wrote, of any version, and those that were written here as it would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosema.core.config import check_values
from monosema.core.errors import FileError, unknown_name
from monosema.core.files import read_json
from monosema.core.finite import all_finite
from monosema.core.metadata import checked_metadata
from monosema.core.plain import flag_in, list_in, mapping_in, text_in, whole_in
from monosema.core.tensors import read_tensors
from monosema.formats.saelens.names import (
    NAME,
    RULE_TENSORS,
    SAE_RULES,
    START,
    TOKEN_SCALINGS,
    TRANSCODER_RULES,
    WEIGHTS_FILE,
    with_head,
)
from monosema.formats.saelens.processing import CLASS, KWARGS, read_transform
from monosema.formats.shared import CONFIG_FILE, read_density
from monosema.formats.spec import DictionarySpec, PartSpec, Rule, SiteSpec, TokenScaling, TrainedActivation

_METADATA_TYPES: dict[str, Any] = {
    **dict.fromkeys(("model_name", "dataset_path"), str),
    "context_size": int,
    "prepend_bos": bool,
    "exclude_special_tokens": bool | list[int],
}
"""What SAELens' own metadata hold, as far as they are used."""
_OLD_KEYS = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_SCALE_NAMES = ("finetuning_scaling_factor", "scaling_factor")
"""A scale of each latent's activation before the decoder, trained in a last phase by SAELens before 6; newer and older
name."""


def read(folder: Path) -> DictionarySpec:
    """The dictionary in ``folder``; ``FileError`` where files are missing, damaged or do not fit together."""
    where = folder / CONFIG_FILE
    config = read_json(where)
    if not isinstance(config, dict):
        raise FileError(f"{where} must hold a JSON object")
    is_old = _is_old(config, where)
    config = _upgraded(config, where) if is_old else config
    _refuse_unreadable(folder, config)
    rule, is_transcoder, skip = _architecture(config, where)
    token_scaling = _token_scaling(folder, config, skip)
    tensors = _tensors(folder, config, rule, skip)
    metadata = mapping_in(config, "metadata", where)
    check_values(metadata, _METADATA_TYPES, f"{where}: metadata")
    own = mapping_in(config, "monosema", where)
    hook_name, hook_name_out = (
        with_head(text_in(metadata, f"hook_name{end}", where), whole_in(metadata, f"hook_head_index{end}", where))
        for end in ("", "_out")
    )
    if token_scaling != "none" and is_transcoder:
        hook_name_out = hook_name_out or "target"  # that it is another site than the one read decides what is computed
    recorded = checked_metadata(own.get("metadata"), where)
    made = mapping_in(recorded, "coder", where)
    subtracts_b_dec = flag_in(config, "apply_b_dec_to_input", where) is not False and not is_transcoder
    part = PartSpec(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors.get("b_enc"),
        b_dec=None if made.get("b_dec") == "none" and not subtracts_b_dec else tensors["b_dec"],
        W_skip=tensors.get("W_skip"),
        subtracts_b_dec=subtracts_b_dec,
        rule=Rule(
            name=rule,
            k=whole_in(config, "k", where),
            tensors={name: tensors[name] for name in RULE_TENSORS[rule] if name != "b_enc"},
        ),
        trained=_trained(mapping_in(own, "activation", where), made, where),
        token_scaling=token_scaling,
    )
    return DictionarySpec(
        kind="coder",
        parts=(part,),
        reads=(SiteSpec(name=hook_name, width=part.d_in),),
        writes=(SiteSpec(name=hook_name_out or hook_name, width=part.d_out),),
        dtype=(text_in(config, "dtype", where) or "float32").removeprefix("torch."),
        start={name: made[name] for name in START if made.get(name) is not None},
        metadata=recorded or _foreign_metadata(metadata, is_old, where),
        log10_density=read_density(folder),
    )


def _architecture(config: Mapping[str, Any], where: Path) -> tuple[str, bool, bool]:
    """Its rule, whether it is a transcoder, and whether it has a skip connection."""
    architecture = text_in(config, "architecture", where) or "standard"
    if architecture in SAE_RULES:
        return SAE_RULES[architecture], False, False
    if architecture in TRANSCODER_RULES:
        rule, skip = TRANSCODER_RULES[architecture]
        return rule, True, skip
    raise FileError(f"{where}: {unknown_name('architecture', architecture[:80], [*SAE_RULES, *TRANSCODER_RULES])}")


def _tensors(folder: Path, config: Mapping[str, Any], rule: str, skip: bool) -> dict[str, Tensor]:
    """The tensors as they are used: ``W_skip [d_in, d_out]``, and all scales folded into the weights."""
    tensors = read_tensors(folder / WEIGHTS_FILE)
    scales = {name: tensors.pop(name) for name in _SCALE_NAMES if name in tensors}
    _check_shapes(folder, config, tensors, rule, skip)
    scale = _fine_tuned_scale(folder, config, scales, len(tensors["W_dec"]))
    if skip:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    if rule in ("topk", "abstopk") and flag_in(config, "rescale_acts_by_decoder_norm", folder / CONFIG_FILE):
        tensors = _fold_decoder_norms(tensors)
    if scale is not None:
        tensors["W_dec"] = tensors["W_dec"] * scale.to(tensors["W_dec"]).unsqueeze(1)
    return tensors


def _trained(activation: Mapping[str, Any], made: Mapping[str, Any], where: Path) -> TrainedActivation | None:
    """The activation of our own block, where there is one."""
    if not activation:
        return None
    threshold = made.get("threshold")
    if threshold is not None and type(threshold) not in (int, float):
        raise FileError(f"{where}: the running threshold must be a number, got {threshold!r:.80}")
    return TrainedActivation(config=activation, threshold=threshold)


def _is_old(config: Mapping[str, Any], where: Path) -> bool:
    """Whether ``cfg.json`` is of before SAELens 6."""
    metadata = mapping_in(config, "metadata", where)
    version = text_in(config, "sae_lens_version", where) or text_in(metadata, "sae_lens_version", where) or "0"
    return version.split(".")[0] in {"0", "1", "2", "3", "4", "5"}


def _foreign_metadata(metadata: Mapping[str, Any], is_old: bool, where: Path) -> dict[str, Any]:
    """The metadata of a dictionary that was not saved here: what SAELens recorded, and what of it has words here."""
    transform = read_transform(metadata, is_old=is_old, where=where)
    return {
        NAME: metadata,
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
    if not isinstance(normalize, str) or normalize not in TOKEN_SCALINGS:
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
    return TOKEN_SCALINGS[normalize]


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


def _recorded_positions(metadata: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The same, back, as our metadata say it; nothing where all positions were trained on."""
    given = list_in(metadata, "seqpos_slice", where)[:3] or [None]
    if not all(each is None or type(each) is int for each in given):
        raise FileError(f"{where}: seqpos_slice must be a list of whole numbers or null, got {given!r:.80}")
    chosen = slice(*given)
    if given == [None]:
        return {}
    return {"tokens": {"positions": {"start": chosen.start, "stop": chosen.stop, "step": chosen.step}}}


def _fold_decoder_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A TopK SAE that selects by ``pre_i · ‖W_dec_i‖`` as the same one with unit decoder rows."""
    norms = tensors["W_dec"].norm(dim=1)
    return {
        **tensors,
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms.clamp(min=torch.finfo(norms.dtype).tiny).unsqueeze(1),
    }


def _check_shapes(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], rule: str, skip: bool
) -> None:
    d_in, d_sae, d_out = (whole_in(config, name, folder / CONFIG_FILE) for name in ("d_in", "d_sae", "d_out"))
    if d_in is None or d_sae is None:
        raise FileError(f"{folder / CONFIG_FILE} does not state d_in and d_sae")
    d_out = d_in if d_out is None else d_out
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    expected |= dict.fromkeys(RULE_TENSORS[rule], (d_sae,))
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
