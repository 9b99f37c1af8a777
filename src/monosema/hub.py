"""Saving and loading dictionaries: the only glue of formats and coders."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosema.coders import (
    AbsTopK,
    BatchTopK,
    CoderConfig,
    CrossLayerTranscoder,
    Dictionary,
    Gated,
    JumpReLU,
    ReLU,
    SparseCoder,
    StackConfig,
    TanhReLU,
    TopK,
    TrainableDictionary,
)
from monosema.coders.activations.fixed import FixedCountActivation
from monosema.coders.config import ActivationConfig
from monosema.coders.parts import Origin
from monosema.coders.site_transform import SiteTransform
from monosema.coders.trainable import require_sparse_coders
from monosema.core.config import from_plain, to_plain
from monosema.core.devices import choose_device, parse_dtype
from monosema.core.errors import ConfigError, DataError, FileError, ShapeError, UserError, first_line
from monosema.core.files import atomic_folder, looks_like_path
from monosema.core.finite import all_finite
from monosema.core.logs import get_logger
from monosema.formats import CoderSpec, native, saelens
from monosema.formats.checkpoints import is_run, named_checkpoint, run_progress, tokens_wanted, unfinished_names
from monosema.formats.native import NativeSpec
from monosema.formats.spec import Rule

logger = get_logger("monosema.hub")

_WHAT_TO_GIVE = (
    f"give the path of a run folder, or of a folder that holds {saelens.CONFIG_FILE}, or the hub's name of a "
    "repository (owner/name)"
)


def save(coder: Dictionary, folder: str | os.PathLike[str], *, log10_density: Tensor | None = None) -> Path:
    """Write ``coder`` as a folder that ``load`` reads, and SAELens too where it has such a class.

    ``log10_density [d_sae]`` are the firing densities; by default those that the dictionary carries
    (``metadata["log10_density"]``, where it was loaded with some or trained here).
    Selection rules with one threshold (BatchTopK) are written as ``jumprelu`` with it. The folder appears whole or not
    at all. It takes the place of a dictionary saved there before; a folder that holds anything else is refused with
    ``FileError``, and a weight that is not finite with ``DataError``, before anything is written.
    """
    target = Path(folder)
    coder = require_sparse_coders(coder, "saved")
    _require_finite(coder)
    _require_replaceable(target)
    _require_threshold(coder)
    density = coder.metadata.get("log10_density") if log10_density is None else log10_density
    if density is not None and tuple(density.shape) != (coder.d_sae,):
        raise ShapeError(
            f"log10_density must have a number for each of {coder.d_sae} latents, got {list(density.shape)}"
        )
    with atomic_folder(target) as temporary:
        sae = None if coder.is_layered else coder.parts[0].coder
        if sae is not None and fits_saelens(sae):
            saelens.write(to_spec(sae, density), temporary)
        else:
            native.write(to_native(coder, density), temporary)
    return target


def _require_finite(coder: Dictionary) -> None:
    """Refuse weights that no reader takes."""
    for name, value in (*coder.named_parameters(), *coder.named_buffers()):
        if not all_finite(value):
            raise DataError(
                f"the dictionary's {name} holds values that are not finite, so nothing was saved. Look for rows of "
                "extreme size (outlier_norm_multiple leaves them out of training), a learning rate that is too large, "
                "or weights that were damaged when they were set"
            )


def _require_replaceable(target: Path) -> None:
    """Refuse to take the place of anything but a saved dictionary."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileError(f"{target} is a file; save the dictionary under another name")
    own = {*saelens.FILES, *native.FILES}
    others = sorted(path.name for path in target.iterdir() if path.name not in own)
    if others:
        shown = ", ".join(others[:3])
        raise FileError(f"{target} holds more than a dictionary ({shown}); save it to a new folder, say {target}/coder")


def load(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    token: str | None = None,
    revision: str | None = None,
    force_download: bool = False,
) -> TrainableDictionary:
    """The dictionary in a local folder, or under ``name`` in a Hugging Face repository ``source``.

    A run folder stands for its ``coder/``; ``name`` may then be a checkpoint: ``latest``, ``best``, ``step_500`` or,
    by the tokens it was trained on, ``tokens_1024000``. Raises ``FileError`` where nothing readable is there.
    """
    folder = _local_folder(source, name, token=token, revision=revision, force_download=force_download)
    spec = native.read(folder) if native.is_native(folder) else saelens.read(folder)
    coder: TrainableDictionary
    try:
        coder = from_native(spec) if isinstance(spec, NativeSpec) else from_spec(spec)
        transform = coder.site_transform
    except UserError as error:
        raise FileError(f"{folder} holds no dictionary that can be used: {error}") from error
    if transform not in (SiteTransform(), SiteTransform(centering_unknown=True)):
        logger.warning(
            "%s was trained on activations that the plain model does not have (%s); see coder.site_transform",
            folder,
            transform.words,
        )
    coder.loaded_from = Origin(str(source), name, (coder.hook_name, coder.hook_name_out))
    return coder.to(device=choose_device(device), dtype=None if dtype is None else parse_dtype(dtype))


def fits_saelens(coder: SparseCoder) -> bool:
    """Whether SAELens' layout can hold what ``coder`` computes."""
    config, activation = coder.config, coder.config.activation
    if len(config.read_widths) > 1 or len(config.write_widths) > 1 or config.b_dec == "separate":
        return False
    match activation:
        case TanhReLU():
            return False
        case TopK() | BatchTopK() | AbsTopK() if activation.weight_by_decoder_norm and not _has_unit_rows(coder):
            return False
        case AbsTopK():
            is_sae = coder.reconstructs and not coder.has_skip
            return activation.inference == "topk" and is_sae
        case BatchTopK():
            return activation.inference == "threshold"
    return True


def to_native(coder: TrainableDictionary, log10_density: Tensor | None = None) -> NativeSpec:
    """``coder`` as its plain config and tensors."""
    return NativeSpec(
        kind="stack" if coder.is_layered else "coder",
        config=to_plain(coder.config),
        tensors=dict(coder.state_dict()),
        metadata={key: value for key, value in coder.metadata.items() if key != "log10_density"},
        log10_density=log10_density,
    )


def from_native(spec: NativeSpec) -> TrainableDictionary:
    """The dictionary that ``spec`` describes; ``FileError`` where tensors and config do not fit together."""
    metadata = dict(spec.metadata)
    if spec.log10_density is not None:
        metadata["log10_density"] = spec.log10_density
    coder: TrainableDictionary
    _require_sites(spec)
    if spec.kind == "coder":
        config = from_plain(CoderConfig, spec.config)
        _require_sizes(spec.tensors, {"": config})
        coder = SparseCoder(config, metadata=metadata)
    else:
        stack = from_plain(StackConfig, spec.config)
        _require_sizes(spec.tensors, {f"layers.{number}.": layer for number, layer in enumerate(stack.layers())})
        coder = CrossLayerTranscoder(stack, metadata=metadata)
    expected = {name: tuple(tensor.shape) for name, tensor in coder.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in spec.tensors.items()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise FileError(f"the file's tensors do not fit its config: {', '.join(different[:5])}")
    if not all(map(all_finite, spec.tensors.values())):
        raise FileError("the file holds values that are not finite")
    coder.load_state_dict(dict(spec.tensors))
    coder.is_trained = True
    coder.requires_grad_(False)
    return coder


def _require_sites(spec: NativeSpec) -> None:
    """Refuse a config of more sites than there are values in the widest tensor, before anything is made of it."""
    widest = max((max(tensor.shape, default=0) for tensor in spec.tensors.values()), default=0)
    for name in ("read_widths", "write_widths"):
        widths = spec.config.get(name)
        if isinstance(widths, list) and len(widths) > max(widest, len(spec.tensors)):
            raise FileError(f"the file's tensors do not fit its config: {len(widths)} {name}")


def _require_sizes(tensors: Mapping[str, Tensor], configs: Mapping[str, CoderConfig]) -> None:
    """Refuse widths that the tensors do not have, before memory is taken for them."""
    for prefix, config in configs.items():
        for name, width in (("W_enc_rows", config.d_in), ("W_dec", config.d_out)):
            tensor = tensors.get(prefix + name)
            if tensor is None or tuple(tensor.shape) != (config.d_sae, width):
                raise FileError(f"the file's tensors do not fit its config: {prefix}{name}")


def _require_threshold(coder: TrainableDictionary) -> None:
    for part in coder.parts:
        own = part.coder.activation
        if isinstance(own, FixedCountActivation) and own.config.inference == "threshold" and own.threshold is None:
            name = type(own.config).__name__
            raise ConfigError(f"this {name} coder has no threshold yet: train it first, or set_threshold()")


def _has_unit_rows(coder: SparseCoder) -> bool:
    norms = coder.W_dec.norm(dim=1)
    return bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-4))


def to_spec(coder: SparseCoder, log10_density: Tensor | None = None) -> CoderSpec:
    """``coder`` as a ``CoderSpec``: what it computes at inference."""
    activation, own = coder.config.activation, coder.activation
    tensors = {"W_enc": coder.W_enc, "W_dec": coder.W_dec}
    tensors["b_dec"] = coder.b_dec if coder.b_dec is not None else coder.W_dec.new_zeros(coder.d_out)
    if coder.b_enc is not None:
        tensors["b_enc"] = coder.b_enc
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip
    tensors |= dict(own.named_parameters())
    rule: Rule = "relu"
    k: int | None = None
    match activation:
        case TopK(inference="topk"):
            rule, k = "topk", activation.k
        case AbsTopK():
            rule, k = "abstopk", activation.k
        case JumpReLU():
            rule = "jumprelu"
        case Gated():
            rule = "gated"
        case TopK() | BatchTopK():
            _require_threshold(coder)
            assert isinstance(own, FixedCountActivation) and own.threshold is not None
            rule = "jumprelu"
            tensors["threshold"] = torch.full((coder.d_sae,), own.threshold, dtype=coder.dtype)
    metadata = {key: value for key, value in coder.metadata.items() if key != "log10_density"}
    return CoderSpec(
        rule=rule,
        tensors={key: value.detach() for key, value in tensors.items()},
        is_transcoder=not coder.reconstructs or coder.has_skip,
        subtracts_b_dec=coder.config.b_dec == "input_and_output",
        dtype=coder.config.dtype,
        token_scaling=coder.config.token_scaling,
        k=k,
        hook_name=coder.hook_name,
        hook_name_out=coder.hook_name_out,
        training_activation=to_plain(activation),
        metadata={**metadata, "coder": _not_in_spec(coder)},
        log10_density=log10_density,
    )


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float):
        raise FileError(f"{what} must be a number, got {value!r:.80}")
    return float(value)


_START = ("decoder_init", "decoder_init_norm", "encoder_init", "seed")
"""Options of a coder that its weights started from, and that training it further reads."""


def _not_in_spec(coder: SparseCoder) -> dict[str, Any]:
    """What of ``coder`` SAELens' layout has no place for, as plain values in our own block."""
    config, activation = coder.config, coder.activation
    threshold = activation.threshold if isinstance(activation, FixedCountActivation) else None
    return {
        "b_dec": config.b_dec,
        **{name: getattr(config, name) for name in _START},
        **({} if threshold is None else {"threshold": threshold}),
    }


def from_spec(spec: CoderSpec) -> SparseCoder:
    """The coder that computes what ``spec`` says."""
    activation = _activation(spec)
    metadata = dict(spec.metadata)
    made = metadata.get("coder") or {}
    config = CoderConfig(
        d_in=spec.d_in,
        d_sae=spec.d_sae,
        d_out=spec.d_out,
        activation=activation,
        b_dec="input_and_output" if spec.subtracts_b_dec else "none" if made.get("b_dec") == "none" else "output",
        **{name: made[name] for name in _START if made.get(name) is not None},
        skip="W_skip" in spec.tensors,
        token_scaling=spec.token_scaling,
        hook_name=spec.hook_name,
        hook_name_out=spec.hook_name_out,
        dtype=spec.dtype,
    )
    if spec.log10_density is not None:
        metadata["log10_density"] = spec.log10_density
    coder = SparseCoder(config, metadata=metadata)
    with torch.no_grad():
        coder.W_enc_rows.copy_(spec.tensors["W_enc"].T)
        coder.W_dec.copy_(spec.tensors["W_dec"])
        for name, parameter in (("b_enc", coder.b_enc), ("b_dec", coder.b_dec), ("W_skip", coder.W_skip)):
            if parameter is not None:
                parameter.copy_(spec.tensors[name])
        for name, parameter in coder.activation.named_parameters():
            parameter.copy_(spec.tensors[name])
        if isinstance(coder.activation, FixedCountActivation) and "threshold" in spec.tensors:
            coder.activation.set_threshold(float(spec.tensors["threshold"][0]))
        elif isinstance(coder.activation, FixedCountActivation) and made.get("threshold") is not None:
            coder.activation.set_threshold(_number(made["threshold"], "the running threshold"))
    coder.is_trained = True
    return coder.requires_grad_(False)


def _activation(spec: CoderSpec) -> ActivationConfig:
    trained = None
    if spec.training_activation is not None:
        trained = from_plain(_ActivationField, {"activation": spec.training_activation}).activation
    match spec.rule:
        case "relu":
            return ReLU()
        case "topk":
            if spec.k is None:
                raise FileError("a topk dictionary must state k")
            return trained if isinstance(trained, TopK) else TopK(k=spec.k, weight_by_decoder_norm=False)
        case "abstopk":
            if spec.k is None:
                raise FileError("an abstopk dictionary must state k")
            return trained if isinstance(trained, AbsTopK) else AbsTopK(k=spec.k, weight_by_decoder_norm=False)
        case "gated":
            return Gated()
        case "jumprelu":
            threshold = spec.tensors["threshold"]
            if isinstance(trained, (BatchTopK, TopK)) and bool((threshold == threshold[0]).all()):
                return trained
            return trained if isinstance(trained, JumpReLU) else JumpReLU()


def _local_folder(
    source: str | os.PathLike[str], name: str | None, *, token: str | None, revision: str | None, force_download: bool
) -> Path:
    folder = Path(source)
    if folder.exists():
        named = folder / name if name else folder
        for candidate in (named, named / "coder"):
            if (candidate / saelens.CONFIG_FILE).exists():
                return candidate
        checkpoint = None if name is None else named_checkpoint(folder, name)
        if checkpoint is not None and (checkpoint / "coder" / saelens.CONFIG_FILE).exists():
            if unfinished_names(folder):
                logger.info("%s has not finished; its newest checkpoint is at %s", folder, run_progress(folder))
            return checkpoint / "coder"
        if name is None or is_run(named):
            _refuse_unfinished(named)
        under = f" under {name!r}" if name else ""
        raise FileError(f"{folder} holds no dictionary{under} ({saelens.CONFIG_FILE} is missing); {_WHAT_TO_GIVE}")
    if isinstance(source, Path) or looks_like_path(str(source)):
        raise FileError(f"there is no folder {folder}; {_WHAT_TO_GIVE}")
    return _download(str(source), name, token=token, revision=revision, force_download=force_download)


def _refuse_unfinished(run: Path) -> None:
    """Raise ``FileError`` saying how far ``run`` has come, where it is a run without a finished dictionary."""
    if names := unfinished_names(run):
        raise FileError(
            f"{run} is a run that has not finished: its newest checkpoint is at {run_progress(run)}. Its dictionary is "
            f"not written yet; give one of its checkpoints by name, name={names[0]!r} (--name {names[0]}); there are "
            f"{', '.join(names)}. The call that began the run resumes it"
        )
    if is_run(run):
        wanted = tokens_wanted(run)
        of = "" if wanted is None else f" of the {wanted:,} tokens it is to be trained on"
        raise FileError(
            f"{run} is a run that has written no checkpoint yet{of}; start it again with the call that began it"
        )


def _download(repo: str, name: str | None, *, token: str | None, revision: str | None, force_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    prefix = f"{name}/" if name else ""
    try:
        root = snapshot_download(
            repo,
            allow_patterns=[
                f"{prefix}{file}"
                for file in (saelens.CONFIG_FILE, saelens.WEIGHTS_FILE, native.WEIGHTS_FILE, saelens.SPARSITY_FILE)
            ],
            token=token,
            revision=revision,
            force_download=force_download,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileError(
            f"no folder {repo!r} here, and no such repository could be loaded from the hub ({first_line(error)}); "
            f"{_WHAT_TO_GIVE}"
        ) from error
    folder = Path(root) / name if name else Path(root)
    if not (folder / saelens.CONFIG_FILE).exists():
        raise FileError(f"repository {repo!r} holds no {prefix}{saelens.CONFIG_FILE}")
    return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ActivationField:
    activation: ActivationConfig


def coder_record(coder: Dictionary) -> Mapping[str, Any]:
    """What ``inspect`` shows of a coder: shapes, activation, sites."""
    return {key: value for key, value in to_plain(coder.config).items() if key != "seed"}
