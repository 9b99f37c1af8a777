"""``SiteTransform``: in what the activations a dictionary was trained on differ from those of the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from monosema.core.config import from_plain

KEY = "site_transform"
"""Where a dictionary's metadata hold it, as a mapping of the fields that are true."""


@dataclass(frozen=True, kw_only=True)
class SiteTransform:
    """What was done to a model before a dictionary was trained on it; nothing for dictionaries trained here.

    TransformerLens' options are named in brackets.
    """

    centered: bool = False
    """The residual stream and what is added to it have no mean over their width (center_writing_weights); of models
    with LayerNorm only."""
    norms_folded: bool = False
    """Gain and bias of the norms are in the weights behind them (fold_ln), so ``mlp.hook_in`` is before them."""
    value_biases_folded: bool = False
    """The biases of the values are in the bias of the attention's output (fold_value_biases)."""
    attention_refactored: bool = False
    """Queries, keys, values and what heads read are in other coordinates (refactor_factored_attn_matrices)."""
    norm_outputs_after_gain: bool = False
    """``hook_normalized`` is the norm's output, after gain and bias, as TransformerLens has it of a LayerNorm that is
    not folded."""
    embedding_unscaled: bool = False
    """``hook_embed`` is before the factor that the model multiplies embeddings by (Gemma's √d_model)."""
    centering_unknown: bool = False
    """The dictionary's file does not say whether the model was processed, and may be of a time when it was."""

    @property
    def words(self) -> str:
        """The fields that are true, in words; empty where there are none."""
        return ", ".join(field.name.replace("_", " ") for field in fields(self) if getattr(self, field.name))


def site_transform_of(metadata: Mapping[str, Any]) -> SiteTransform:
    """The transform that a dictionary's ``metadata`` record; ``ConfigError`` where it is not one."""
    return from_plain(SiteTransform, metadata.get(KEY) or {})


def replace_records(metadata: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Lay the records ``new`` over ``metadata`` in place.

    A dictionary that is trained on a plain model loses the transform of the one it was trained on before.
    """
    if new.get("model") or new.get("models"):
        metadata.pop(KEY, None)
    metadata.update(new)
