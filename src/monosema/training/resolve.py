"""What a run's options come to for one dictionary, and which it cannot have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.amp.autocast_mode import is_autocast_available

from monosema.coders import TrainableDictionary
from monosema.coders.activations.family import FixedCount
from monosema.coders.config import TokenScaling
from monosema.core.devices import dtype_name
from monosema.core.errors import ConfigError
from monosema.core.words import counted
from monosema.training.allowed import check_combination, resolve_sparsity
from monosema.training.config import TrainingConfig
from monosema.training.objectives import Objective


def has_unit_norm(coder: TrainableDictionary, config: TrainingConfig) -> bool:
    zeros = getattr(coder.config, "decoder_init", "random") == "zeros"
    activation = coder.config.activation
    unscalable = activation.scale_equivariance() == "none"
    per_target = getattr(coder.config, "tied", "none") == "per_target"
    if config.decoder == "unit_norm":
        for met, what in (
            (zeros, "decoder_init='zeros'"),
            (unscalable, type(activation).__name__),
            (per_target, "tied='per_target'"),
        ):
            if met:
                raise ConfigError(f"decoder='unit_norm' cannot be used with {what}; use decoder='free'")
    if config.decoder != "auto":
        return config.decoder == "unit_norm"
    weighting = getattr(resolve_sparsity(activation, config.sparsity), "weighting", None)
    connects = config.sparse_connection is not None  # the term is lowered by short rows as well
    wanted = weighting == "none" or connects or activation.prefers_unit_norm
    return wanted and not (zeros or unscalable or per_target)


def resolve_token_scaling(coder: TrainableDictionary, config: TrainingConfig) -> TokenScaling:
    """The scaling by each token's size, which ``input_scaling`` or the coder itself may name."""
    own, kind = coder.config.token_scaling, config.input_scaling
    wanted = kind if kind == "constant_norm" or kind == "layer_norm" else own
    if own not in ("none", wanted):
        raise ConfigError(
            f"the coder has token_scaling={own!r}, so input_scaling={wanted!r} cannot be used; use "
            f"input_scaling={own!r}"
        )
    if wanted != own and coder.is_trained:
        raise ConfigError(
            f"input_scaling={wanted!r} cannot be used on this coder: its weights are those of tokens that are not "
            "scaled by their size; use 'expected_norm', or train a fresh coder"
        )
    return wanted


def check_training(coder: TrainableDictionary, config: TrainingConfig, batch_size: int) -> None:
    """Raise ``ConfigError`` for options that ``coder`` cannot have, or not together; nothing is changed."""
    sparsity = resolve_sparsity(coder.config.activation, config.sparsity)
    scaling = resolve_token_scaling(coder, config)
    names = (coder.config.activation, sparsity, config.levels, config.revive)
    check_combination(coder.variant, *names, scaling)
    replace(coder.config, token_scaling=scaling)
    has_unit_norm(coder, config)
    Objective.of(coder, config, sparsity)
    _check_options(coder, config, batch_size)


def _check_options(coder: TrainableDictionary, config: TrainingConfig, batch_size: int) -> None:
    if config.k_start is not None:
        if not isinstance(coder.config.activation, FixedCount):
            name = type(coder.config.activation).__name__
            raise ConfigError(f"k_start anneals k, which {name} does not have; use TopK, AbsTopK or BatchTopK")
        if config.k_start > coder.parts[0].coder.d_sae:
            raise ConfigError(f"k_start={config.k_start} exceeds the {counted(coder.parts[0].coder.d_sae, 'latent')}")
    if config.tokens == 0 and not coder.is_trained:
        raise ConfigError(
            "tokens=0 leaves nothing but fine-tuning, which needs a trained dictionary: load one (coder.start_from in "
            "a run's config), or give tokens"
        )
    if config.input_scaling == "whitening":
        own = coder.config
        b_dec = getattr(own, "b_dec", "output")
        if b_dec == "none":
            raise ConfigError("input_scaling='whitening' centres, and b_dec='none' leaves no bias to hold the mean")
        if b_dec == "input_and_output" and getattr(own, "skip", False):
            raise ConfigError("input_scaling='whitening' cannot be used with a skip connection and one shared bias")
        if getattr(own, "tied", "none") != "none":
            raise ConfigError(
                "input_scaling='whitening' gives every site a map of its own, which tied decoders cannot take; use "
                "'expected_norm', or tied='none'"
            )
    if config.gradient_accumulation > batch_size:
        raise ConfigError(f"gradient_accumulation={config.gradient_accumulation} exceeds the batch of {batch_size}")
    if config.autocast is not None and coder.dtype != torch.float32:
        raise ConfigError(
            f"autocast={config.autocast!r} lowers the precision of float32 products; this coder's weights are "
            f"{dtype_name(coder.dtype)}: make it with dtype='float32', or leave autocast out"
        )
    if config.autocast is not None and not is_autocast_available(coder.device.type):
        raise ConfigError(f"torch has no autocast for the device {coder.device.type!r}; leave autocast out")
    if config.sparse_connection is not None and coder.is_layered:
        raise ConfigError("sparse_connection is for one transcoder, not for a stack of coders")
